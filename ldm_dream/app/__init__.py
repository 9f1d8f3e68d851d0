"""The web page of the upscaler. `server.py` starts it, `page.py` is what it shows.

    browser -> guard.py -> uploads.py -> gradio -> page.py -> sessions.py: the pictures of one tab
                                                           -> enlarging.py: the work, in a thread
                                                           -> views.py: what the browser shows of it

`place.py` and `names.py` are what a command line can get wrong.

Only `server.py` and `page.py` know gradio, which comes with the extra `app`.
"""
