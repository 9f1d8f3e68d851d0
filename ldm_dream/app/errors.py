"""What goes wrong by what people ask of the page."""

from ldm_dream.errors import UserError


class AppError(UserError, ValueError):
    """What a visitor of the page, or who starts it, asked for and cannot have; its text is one
    sentence.
    """
