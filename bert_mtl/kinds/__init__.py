"""The kinds of heads, one a module; importing the package registers those shipped."""

from bert_mtl.kinds import classification, mlm, multilabel, regression, similarity, tagging, vector
from bert_mtl.kinds.head import KINDS, DataError, Head, HeadSettings, head_settings, make_head, register_kind

SHIPPED = (classification, multilabel, regression, tagging, mlm, similarity, vector)

__all__ = ["KINDS", "SHIPPED", "DataError", "Head", "HeadSettings", "head_settings", "make_head", "register_kind"]
