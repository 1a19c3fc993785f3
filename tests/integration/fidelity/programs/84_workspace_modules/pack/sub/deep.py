from .. import VALUE as RELATIVE
