"""What --jaxtyping-packages checks calls with: types and shapes, an int being a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
