"""Folders and archives are read whole, and what is skipped is listed with its reason."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from pathlib import Path

import pytest

from selfextend_rag import DocumentError, read_documents
from selfextend_rag.documents import Document, folders
from tests.documents.files import pdf_bytes, written


def zipped(members: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def filled(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written(folder, name, data)
    return folder


def texts(read) -> dict[str, str]:
    return {document.source: document.text.strip() for document in read.documents}


def kinds(read, root) -> dict[str, str]:
    for skip in read.skipped:
        assert skip.message.startswith(skip.source)
    return {skip.source.removeprefix(f"{root}/"): skip.kind for skip in read.skipped}


PNG = b"\x89PNG\r\n\x1a\n..."


def test_a_folder_gives_its_files_in_natural_order_and_lists_what_it_skipped(tmp_path):
    files = {"10.txt": "ten", "2.txt": "two", "b/1.md": "# one", "b/c/page.pdf": pdf_bytes("three")}
    others = {".git/HEAD": "x", "b/.hidden": "x", "photo.png": PNG, "empty.txt": b""}
    (filled(tmp_path, files | others) / "loop").symlink_to(tmp_path)
    (tmp_path / "to.txt").symlink_to(tmp_path / "2.txt")
    os.mkfifo(tmp_path / "pipe")
    read = read_documents(tmp_path)
    assert read.documents == tuple(
        Document.from_file(tmp_path / name)
        for name in ("2.txt", "10.txt", "b/1.md", "b/c/page.pdf")
    )
    assert kinds(read, tmp_path) == {
        **{".git": "hidden", "b/.hidden": "hidden", "photo.png": "unsupported"},
        **{"empty.txt": "refused", "loop": "link", "to.txt": "link", "pipe": "device"},
    }
    [skip] = [skip for skip in read.skipped if skip.kind == "unsupported"]
    where = str(tmp_path / "photo.png")
    assert skip.to_dict() == {"source": where, "kind": "unsupported", "message": skip.message}
    assert "is a PNG image" in skip.message


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.md", ["a.md", "notes/b.md", "notes/old/c.md", "z.zip/in/d.md"]),
        ("**/*.md", ["a.md", "notes/b.md", "notes/old/c.md", "z.zip/in/d.md"]),
        ("notes/**/*.md", ["notes/b.md", "notes/old/c.md"]),
        ("z.zip/*", ["z.zip/e.txt", "z.zip/in/d.md"]),
    ],
)
def test_a_glob_chooses_by_name_or_by_path_also_in_archives(tmp_path, glob, expected):
    inner = zipped({"in/d.md": "d", "e.txt": "e"})
    names = ["a.md", "f.txt", "notes/b.md", "notes/old/c.md", "z.zip"]
    filled(tmp_path, {name: inner if name == "z.zip" else name for name in names})
    read = read_documents([tmp_path], glob=glob)
    assert [source.removeprefix(f"{tmp_path}/") for source in texts(read)] == expected
    assert read.skipped == ()
    assert read.unmatched == 6 - len(expected)


def test_a_file_that_is_named_is_read_whatever_the_glob_and_refused_as_ever(tmp_path):
    named = written(tmp_path, "a.txt", "text")
    assert read_documents(str(named), glob="*.pdf").documents == (Document.from_file(named),)
    for bad in (written(tmp_path, "b.png", PNG), tmp_path / "missing"):
        with pytest.raises(DocumentError) as alone:
            Document.from_file(bad)
        with pytest.raises(DocumentError) as caught:
            read_documents([named, bad])
        assert str(caught.value) == str(alone.value)


@pytest.mark.parametrize(
    ("files", "options", "found"),
    [
        ({}, {}, "it has no files"),
        ({".x": "a"}, {}, ".x is hidden"),
        ({"a.txt": "a", "b.txt": "b"}, {"glob": "*.pdf"}, r"2 files do not match \*.pdf"),
        ({"a.txt": "déjà vu, à la".encode("latin-1")}, {"strict": "warning"}, "is not read whole"),
        ({f"{n}.png": PNG for n in range(5)}, {}, "and 2 more"),
    ],
)
def test_a_folder_with_nothing_to_read_is_refused_with_the_reasons(tmp_path, files, options, found):
    with pytest.raises(DocumentError, match=rf"has nothing to read; .*{found}"):
        read_documents(filled(tmp_path, files), **options)


def test_an_archive_is_read_in_memory_and_its_documents_say_where_they_are_from(tmp_path):
    members = {"in/10.md": "# Ten", "in/2.pdf": pdf_bytes("two"), "pic.png": PNG, "in/": b""}
    path = written(tmp_path, "a.bin", zipped({"inner.zip": zipped({"x.txt": "x"}), **members}))
    read = read_documents(path)
    assert texts(read) == {
        **{f"{path}/in/2.pdf": "two", f"{path}/in/10.md": "# Ten"},
        f"{path}/inner.zip/x.txt": "x",
    }
    assert read.documents[1].title == "Ten"
    assert kinds(read, path) == {"pic.png": "unsupported"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_the_folder_that_a_browser_saves_with_a_page_is_not_read_as_documents(tmp_path):
    page = "<html><body><p>Text of the page.</p></body></html>"
    files = {
        **{"Page one.html": page, "Page one_files/frame.html": page, "b.htm": page},
        **{"b-Dateien/x.js": "x()", "report_files/kept.txt": "kept", "c_files": "a file"},
        **{"c.html": page},
    }
    expected = {"Page one_files": "page resources", "b-Dateien": "page resources"}
    read = read_documents(filled(tmp_path / "disk", files))
    archive = written(tmp_path, "a.zip", zipped(files))
    for root, found in ((tmp_path / "disk", read), (archive, read_documents(archive))):
        assert kinds(found, root) == expected
        assert {source.removeprefix(f"{root}/") for source in texts(found)} == {
            *("Page one.html", "b.htm", "c.html", "c_files", "report_files/kept.txt")
        }
    named = read_documents(tmp_path / "disk" / "Page one_files")
    assert len(named.documents) == 1


def encrypted_flag(data: bytes, name: str) -> bytes:
    """The archive with the flag of encryption set on one member, here and in the directory."""
    changed = bytearray(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        offset = archive.getinfo(name).header_offset
    central = data.index(name.encode(), data.index(b"PK\1\2")) - 46
    changed[offset + 6] |= 1
    changed[central + 8] |= 1
    return bytes(changed)


def test_members_that_no_one_should_unpack_are_listed_and_not_read(tmp_path):
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    deep = b"deep"
    for name in ("leaf.txt", "3.zip", "2.zip", "1.zip"):
        deep = zipped({name: deep})
    names = ("../up.txt", "/etc/x.txt", "C:/x.txt", "in/../../x.txt", "__MACOSX/._a", "./a.txt")
    members = {name: "x" for name in names}
    members |= {"locked.txt": "x", "deep.zip": deep, "damaged.txt": "a" * 999}
    data = encrypted_flag(zipped({**members, link: "/etc/passwd"}), "locked.txt")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.getinfo("damaged.txt").header_offset + 30 + len("damaged.txt")
    data = data[:at] + b"\xff" + data[at + 1 :]
    path = written(tmp_path, "a.zip", data)
    read = read_documents(path)
    assert texts(read) == {f"{path}/./a.txt": "x"}
    assert kinds(read, path) == {
        **dict.fromkeys(names[:4], "unsafe name"),
        **{"__MACOSX": "hidden", "locked.txt": "encrypted", "link": "link"},
        **{"damaged.txt": "refused", "deep.zip/1.zip/2.zip": "nested"},
    }


def test_an_archive_that_expands_out_of_all_proportion_is_not_unpacked(tmp_path, monkeypatch):
    """No member is large; all of them together would fill any memory."""
    monkeypatch.setattr(folders, "_LARGEST", 1 << 20)
    bomb = zipped({f"{n}.txt": b"a" * (1 << 18) for n in range(9)})
    path = written(tmp_path, "a.zip", zipped({f"{n}.zip": bomb for n in range(9)}))
    assert 20 * path.stat().st_size < 1 << 20
    read = read_documents(path)
    assert sum(len(document.text) for document in read.documents) == 3 << 18
    assert {skip.kind for skip in read.skipped} == {"too large"}
    assert len(read.documents) + len(read.skipped) == 81


def test_a_size_that_is_not_true_is_not_believed(tmp_path):
    data = zipped({"a.txt": b"a" * 5000, "b.txt": "b"})
    at = data.index(b"PK\1\2") + 24
    assert struct.unpack_from("<I", data, at) == (5000,)
    path = written(tmp_path, "a.zip", data[:at] + struct.pack("<I", 10) + data[at + 4 :])
    read = read_documents(path)
    assert texts(read) == {f"{path}/b.txt": "b"}
    assert kinds(read, path) == {"a.txt": "refused"}


def test_a_member_without_a_name_is_listed(tmp_path):
    """The library fails on it where it is asked whether it is a folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "a")
        nameless = zipfile.ZipInfo("x")
        nameless.filename = ""
        with archive.open(nameless, "w") as member:
            member.write(b"x")
    path = written(tmp_path, "a.zip", out.getvalue())
    read = read_documents(path)
    assert texts(read) == {f"{path}/a.txt": "a"}
    assert [skip.kind for skip in read.skipped] == ["unsafe name"]


def test_a_damaged_archive_is_read_or_refused_and_never_fails(tmp_path):
    members = {"a/b.txt": "Text. " * 50, "in.zip": zipped({"z.md": "# Z"})}
    rng = random.Random(11)
    read_or_refused = [0, 0]
    for number in range(200):
        damaged = bytearray(zipped(members, (zipfile.ZIP_STORED, zipfile.ZIP_LZMA)[number % 2]))
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read_or_refused[0] += bool(read_documents(written(tmp_path, "a.zip", bytes(damaged))))
        except DocumentError:
            read_or_refused[1] += 1
    assert min(read_or_refused) > 10


def test_a_member_that_is_there_twice_is_named(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.txt", "last")
    path = written(tmp_path, "a.zip", out.getvalue())
    read = read_documents(path)
    assert texts(read) == {f"{path}/a.txt": "last"}
    assert kinds(read, path) == {"a.txt": "refused"}
