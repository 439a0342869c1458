"""The audit of another attribute."""

import numpy as np
import pytest

from export import data
from export.audit import attributes
from export.errors import ExportError


def test_a_statement_cuts_a_column_in_two() -> None:
    faces = data.Faces(np.empty(4), {"age": np.array(["44", "45", "", "60"]), "gender": np.array(["M", "F", "M", ""])})
    truth, known = attributes.statement("age>=45").of(faces)
    assert (truth.tolist(), known.tolist()) == ([False, True, False, True], [True, True, False, True])
    truth, known = attributes.statement("gender=M").of(faces)
    assert (truth.tolist(), known.tolist()) == ([True, False, True, False], [True, True, True, False])
    for text in ("age", "age>=old", "age<3", "a=b=c"):
        with pytest.raises(ExportError, match="is no statement about a column"):
            attributes.statement(text)
