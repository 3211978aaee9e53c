"""The contacts file: names for numbers, and every mistake by its line."""

from pathlib import Path

import pytest

from forwarder.contacts import read_contacts


def test_a_number_has_its_name_however_it_is_written(tmp_path: Path) -> None:
    """The file's spelling and CallFire's are one number; a heading, empty lines and Excel's mark are passed over."""
    file = tmp_path / "contacts.csv"
    file.write_bytes('\ufeffNumber,Name\n\n(818) 555-1212,"Lovelace, Ada"\n+447911123456,Грейс\n72345,Bank\n'.encode())
    contacts = read_contacts(file)
    assert contacts.name("18185551212") == contacts.name("+1 818 555 1212") == "Lovelace, Ada"
    assert contacts.name("447911123456") == "Грейс"
    assert contacts.name("72345") == "Bank"
    assert contacts.name("18185550000") is None


def test_every_mistake_is_told_by_its_line(tmp_path: Path) -> None:
    """One run is enough to learn everything."""
    file = tmp_path / "contacts.csv"
    file.write_text("+18185551212,Ada\nbob,Bob\n+18185551212,Grace\n+18185551213;Eve\n+18185551214,Lee, Jr\n1,\n")
    with pytest.raises(ValueError, match="contacts") as caught:
        read_contacts(file)
    assert str(caught.value).splitlines() == [
        f"{file}, line 2: 'bob' is not a phone number such as +18185551212",
        f"{file}, line 3: +18185551212 is 'Ada' further up already",
        f"{file}, line 4: has 1 column, not a number and a name; separate them by a comma",
        f'{file}, line 5: has 3 columns, not a number and a name; put a name with a comma in "quotes"',
        f"{file}, line 6: '1' is not a phone number such as +18185551212",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: no such file"), (b"+1818\xff", "is not UTF-8"), (b'1,"a" b\n', "is not CSV")],
)
def test_a_file_that_is_none_is_told_in_one_sentence(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Missing, in another encoding, or not CSV."""
    file = tmp_path / "contacts.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_contacts(file)
    assert str(file) in str(caught.value)


def test_a_name_cannot_leave_its_line(tmp_path: Path) -> None:
    """A line end inside quotes becomes a space."""
    file = tmp_path / "contacts.csv"
    file.write_bytes(b'+18185551212,"Ada\r\nBcc: eve@example.com"\n')
    assert read_contacts(file).name("18185551212") == "Ada Bcc: eve@example.com"
