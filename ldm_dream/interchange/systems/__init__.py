"""Which published systems can be imported. Adding one = a file here and its row in SYSTEMS, where
the first whose mark fits counts.
"""

from ldm_dream.interchange.systems.idm import IDM
from ldm_dream.interchange.systems.ldm import LDM
from ldm_dream.interchange.systems.resshift import RESSHIFT
from ldm_dream.interchange.systems.sr3 import SR3
from ldm_dream.interchange.systems.taesd import TAESD
from ldm_dream.interchange.systems.vqgan import VQGAN

SYSTEMS = (RESSHIFT, IDM, SR3, VQGAN, TAESD, LDM)  # SR3 has only keys that IDM has too
