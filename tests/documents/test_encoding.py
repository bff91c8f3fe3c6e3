"""Text comes back right from the encodings that files of the last forty years are in."""

from __future__ import annotations

import random
import time
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfextend_rag.documents import Document, DocumentError
from selfextend_rag.documents.encoding import decode
from tests.documents.files import written

# Two texts of each language, a sentence and a few, with the encodings that such files are in.
TEXTS = {
    "de": (
        ("cp1252", "cp850", "mac-roman"),
        "Die Prüfung der Pumpe beginnt am Montag um größer als acht Uhr.",
        "Für größere Schäden haftet der Käufer. Die Müllabfuhr kommt dienstags, außer feiertags; "
        "Änderungen werden rechtzeitig bekannt gegeben. Über Gebühren entscheidet der Ausschuß.",
    ),
    "fr": (
        ("cp1252", "iso8859-15", "mac-roman", "cp850"),
        "Le médecin a vérifié la température du patient à l'hôpital.",
        "L'été dernier, les élèves ont visité une forêt près de la frontière. Ils ont été très "
        "étonnés d'y trouver un château abandonné, où l'on conservait des livres du siècle passé.",
    ),
    "es": (
        ("cp1252", "cp850"),
        "La niña preguntó cuándo volvería su mamá de España.",
        "El señor Núñez explicó que la reunión del próximo miércoles se celebrará en el jardín. "
        "¿Quién llevará los informes técnicos? Según la secretaría, aún no se decidió nada más.",
    ),
    "pl": (
        ("cp1250", "iso8859-2", "cp852"),
        "Kierownik wysyła zgłoszenie, gdy łożysko się zużyje.",
        "Wszyscy mieszkańcy proszeni są o wyłączenie urządzeń. Woda będzie dostępna później, gdyż "
        "pracownicy muszą najpierw oczyścić zbiornik i sprawdzić, czy rury są szczelne.",
    ),
    "cs": (
        ("cp1250", "iso8859-2"),
        "Příští týden přijede ředitel závodu a prohlédne si nové čerpadlo.",
        "Každý zaměstnanec musí dodržovat předpisy. Žádost o výměnu součástky se podává písemně; "
        "schválí-li ji vedoucí, bude díl objednán nejpozději do čtyř pracovních dnů.",
    ),
    "hu": (
        ("cp1250", "iso8859-2"),
        "A szivattyút félévente ellenőrizni kell, a csapágyakat pedig évente.",
        "Kérjük, hogy a gépet csak képzett szakember működtesse. Az őrzési kötelezettség a vevőt "
        "terheli, és a következő időszakban külön díjat kell fizetni a különböző szűrőkért.",
    ),
    "tr": (
        ("cp1254",),
        "Şirketin dış satışları geçen yıl arttı, ışıklar akşam açıldı.",
        "Çalışanların güvenliği için aşağıdaki kuralların uygulanması gerekmektedir. Değişiklikler "
        "yönetim kurulunun kararıyla yürürlüğe girer ve bütün şubelere yazılı olarak bildirilir.",
    ),
    "lt": (
        ("cp1257",),
        "Siurblį būtina tikrinti kas šešis mėnesius, o guolius kasmet.",
        "Kiekvienas darbuotojas privalo žinoti saugos taisykles. Jeigu įrenginys sugenda, apie tai "
        "nedelsiant pranešama vyresniajam inžinieriui, kuris nusprendžia, ką daryti toliau.",
    ),
    "ru": (
        ("cp1251", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic"),
        "Насос надо проверять каждые полгода, отвечает начальник смены.",
        "Все рабочие обязаны соблюдать правила. Если подшипник изношен, его заменяют новым, а "
        "старый сдают на склад. Журнал хранится пять лет, копии выдаются по письменной просьбе.",
    ),
    "uk": (
        ("cp1251", "koi8-u"),
        "Її перевіряють щороку, а підшипники замінює черговий інженер.",
        "Кожен працівник зобов'язаний знати ці вимоги. Якщо виявлено пошкодження, обладнання слід "
        "негайно зупинити й повідомити керівника; її рішення є остаточним для всієї зміни.",
    ),
    "el": (
        ("cp1253", "iso8859-7"),
        "Η αντλία πρέπει να ελέγχεται κάθε έξι μήνες από τον μηχανικό.",
        "Όλοι οι εργαζόμενοι οφείλουν να γνωρίζουν τους κανόνες ασφαλείας. Αν βρεθεί βλάβη, η "
        "μηχανή σταματά αμέσως και ενημερώνεται ο υπεύθυνος της βάρδιας.",
    ),
    "he": (
        ("cp1255",),
        "יש לבדוק את המשאבה כל חצי שנה ואת המסבים פעם בשנה.",
        "כל העובדים חייבים להכיר את כללי הבטיחות. אם נמצא נזק יש לעצור מיד את המכונה.",
    ),
    "ar": (
        ("cp1256",),
        "يجب فحص المضخة كل ستة أشهر والمحامل مرة في السنة.",
        "على جميع العاملين معرفة قواعد السلامة. إذا وجد عطل توقف الآلة فورا ويبلغ المدير المسؤول.",
    ),
    "th": (
        ("cp874",),
        "ต้องตรวจสอบปั๊มทุกหกเดือน และตลับลูกปืนปีละครั้ง",
        "พนักงานทุกคนต้องรู้กฎความปลอดภัย ถ้าพบความเสียหายให้หยุดเครื่องทันทีและแจ้งหัวหน้า",
    ),
    "ja": (
        ("cp932", "euc_jp", "iso2022_jp", "utf-16-le", "utf-16-be", "utf-32-le"),
        "ポンプは半年ごとに点検し、記録を残します。",
        "作業員は全員、安全規則を知っていなければなりません。故障を見つけたときは、すぐに機械を止めて責任者に"
        "知らせてください。\n軸受は毎年交換します。",
    ),
    "ko": (
        ("cp949", "iso2022_kr", "utf-16-le"),
        "펌프는 여섯 달마다 점검하고 기록을 남깁니다.",
        "모든 직원은 안전 규칙을 알아야 합니다. 고장을 발견하면 즉시 기계를 멈추고 "
        "책임자에게 알려 주십시오.",
    ),
    "zh": (
        ("gb18030", "hz", "utf-16-le", "utf-16-be", "utf-32-be"),
        "水泵每半年检查一次，并保存记录。",
        "所有员工都必须了解安全规则。\n如果发现故障，应立即停机并通知负责人。轴承每年更换一次，旧件交回仓库。",
    ),
    "zh-tw": (
        ("big5", "utf-16-le"),
        "水泵每半年檢查一次，並保存記錄。",
        "所有員工都必須瞭解安全規則。\n如果發現故障，應立即停機並通知負責人。軸承每年更換一次，舊件交回倉庫。",
    ),
    "hi": (
        ("utf-16-le", "utf-16-be"),
        "पंप की जाँच हर छह महीने में की जाती है।",
        "सभी कर्मचारियों को सुरक्षा नियम जानने चाहिए। यदि कोई खराबी मिले तो मशीन तुरंत बंद करें।",
    ),
    "en": (
        ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "ascii"),
        "The pump must be checked twice a year.",
        "All staff must know the rules.\nIf damage is found, stop the machine and call the boss.",
    ),
}
SAMPLES = [
    pytest.param(codec, text, id=f"{language}-{codec}-{length}")
    for language, (codecs, *texts) in TEXTS.items()
    for codec in codecs
    for length, text in zip(("short", "long"), texts, strict=True)
]


def test_there_are_enough_samples_for_the_claim():
    assert len(SAMPLES) >= 80
    assert len({codec for codecs, *_ in TEXTS.values() for codec in codecs}) >= 30


@pytest.mark.parametrize(("codec", "text"), SAMPLES)
def test_text_is_recognised_in_its_encoding(codec, text):
    data = text.encode(codec)
    assert decode(data, "a.txt").text == data.decode(codec)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Price: 20 € – it’s “final”…", "cp1252"),
        ("Item;Price\n" + "Seal;£12.50\nPump;£100\n" * 50, "cp1252"),
        ("Keep between 20 °C and 35 °C, ±2 °C, see § 5.\n" * 20, "cp1252"),
        ("Zürich", "cp1252"),
        ("naïve", "cp1252"),
        ("El Niño", "cp1252"),
    ],
)
def test_a_few_signs_in_english_text_are_western_and_a_guess(text, codec):
    """chardet alone reads '£100' as cp852 'ú100', and '20 °C' as Korean."""
    content = decode(text.encode(codec), "a.txt")
    assert content.text == text
    assert content.remarks[0].kind == "guessed encoding"


def test_a_guess_names_the_next_best():
    content = decode("Ważne: wyłącz zasilanie.".encode("cp1250"), "a.txt")
    assert "(next: iso8859-2): pass encoding= to choose" in content.remarks[0].message


def test_a_guess_rests_on_the_lines_that_are_not_ascii():
    """chardet alone looks at the first 200,000 bytes, and takes the file for ASCII."""
    text = "A line of the log without any news.\n" * 10_000 + TEXTS["ru"][2]
    assert decode(text.encode("cp1251"), "a.log").text == text


@pytest.mark.parametrize("zeros", [1, 3])
@pytest.mark.parametrize(
    "data",
    [
        b"Line one of an old log.\nLine two of it.\n",
        "Die Prüfung der Pumpe, größer als zuvor.\n".encode("cp1252"),
        (TEXTS["zh"][2] + "\n").encode(),
        (TEXTS["ru"][2] + "\n").encode(),
        b"<!doctype html><html><body><p>One two three.</p></body></html>",
    ],
)
def test_zero_bytes_in_a_text_of_bytes_never_make_it_utf16(data, zeros):
    """One zero byte made Chinese of an ASCII file."""
    for seed in range(20):
        rng = random.Random(seed)
        damaged = bytearray(data)
        for _ in range(zeros):
            damaged.insert(rng.randrange(len(damaged)), 0)
        with pytest.raises(DocumentError, match="it holds zero bytes, the first at byte"):
            decode(bytes(damaged), "a.txt")


@pytest.mark.parametrize(
    ("language", "codec"),
    [
        *(("ja", codec) for codec in ("cp932", "euc_jp", "iso2022_jp")),
        *(("ko", "cp949"), ("zh", "gb18030"), ("zh-tw", "big5"), ("pl", "utf-8"), ("zh", "utf-8")),
    ],
)
def test_text_in_several_bytes_per_character_is_refused_when_a_byte_is_wrong(language, codec):
    """Read as another encoding, all of it would be wrong; ISO-2022-JP came out as ASCII."""
    data = (TEXTS[language][2] + "\n").encode(codec)
    for at in (len(data) // 4, len(data) // 2):
        with pytest.raises(DocumentError, match="damaged"):
            decode(data[:at] + b"\xff" + data[at:], "a.txt")


def page(label, text, codec):
    markup = f"<!doctype html><html><head><meta charset={label}></head><body><p>{text}</p></body>"
    return markup.encode(codec)


@pytest.mark.parametrize(
    ("label", "codec", "text", "believed"),
    [
        ("undefined", "cp1252", "Größe drei", False),
        ("utf-16", "cp1252", "Café naïve déjà vu.", False),
        ("utf-32", "cp1252", "Größe drei", False),
        ("unicode_escape", "cp1252", r"C:\new und C:\Ärger", False),
        ("idna", "cp1252", "xn--Größe", False),
        ("rot13", "cp1252", "Größe drei", False),
        ("x-sjis", "cp932", "日本語の文書です。", True),
        ("x-euc-jp", "euc_jp", "日本語の文書です。", True),
        ("ks_c_5601-1987", "cp949", "한국어 문서 똠방각하", True),
        ("gb2312", "gb18030", "中文文件 镕基 €", True),
        ("latin1", "cp1252", "Price “20 €”", True),
        ("iso-8859-9", "cp1254", "Işık – şirket", True),
        ("tis-620", "cp874", "ต้องตรวจสอบปั๊ม", True),
        ("cp437", "cp437", "Größe in £", True),
        ("iso-8859-1", "cp1251", TEXTS["ru"][2], False),
        ("iso-8859-1", "cp932", TEXTS["ja"][2], False),
        ("windows-1252", "iso8859-7", TEXTS["el"][2], False),
        (
            "iso-8859-2",
            "cp1250",
            "Žádost o šest součástek",
            False,
        ),  # š, ž are controls in the former
    ],
)
def test_a_declaration_is_checked_not_believed(tmp_path, label, codec, text, believed):
    document = Document.from_file(written(tmp_path, "a.html", page(label, text, codec)))
    assert document.text == text.replace("\n", " ")
    assert (document.metadata["encoding_from"] == "declaration") == believed
    assert ([r.kind for r in document.remarks] == ["guessed encoding"]) == (not believed)


@pytest.mark.parametrize("label", ["punycode", "idna", "unicode_escape", "utf-7", "base64", ""])
def test_codecs_that_no_file_is_in_are_not_even_tried(label):
    """The codec unicode_escape warns of backslashes, wherever it is tried."""
    data = r"C:\temp\query, größer".encode("cp1252")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, "a.html", declared=label).metadata["encoding"] == "cp1252"


@pytest.mark.parametrize(("codec", "text"), SAMPLES)
def test_a_right_declaration_is_never_contradicted(codec, text):
    if codec.startswith(("utf", "iso2022", "hz", "ascii")):
        return
    content = decode(text.encode(codec), "a.html", declared=codec)
    assert (content.text, content.remarks) == (text, ())


def test_fifty_megabytes_are_read_in_seconds():
    """Sixty seconds for 50 MB is ten times what it takes on a slow machine."""
    for codec in ("utf-8", "cp1252"):
        text = "Les élèves rentrèrent chez eux, très fatigués.\n" * 1_050_000
        data = text.encode(codec)
        begin = time.perf_counter()
        assert len(decode(data, "a.txt").text) == len(text)
        assert time.perf_counter() - begin < 60


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), min_size=2), st.booleans()
)
def test_text_in_utf16_without_a_mark_is_never_silently_another_text(text, little):
    data = text.encode("utf-16-le" if little else "utf-16-be")
    try:
        content = decode(data, "a.txt")
    except DocumentError:
        return
    as_bytes = all(byte >= 32 for byte in data)  # then nothing says that it isn't UTF-8
    assert content.text == text or content.remarks or as_bytes


@pytest.mark.parametrize("space", ["\x1e", "\x85"])
def test_white_space_without_a_name_of_its_own_is_no_error(space):
    """Unicode names no control codes, and what splits a name at white space found none."""
    text = f"The first line,{space}the second line of it." + " It goes on." * 10
    assert decode(text.encode("utf-16-le"), "a.txt").text == text
