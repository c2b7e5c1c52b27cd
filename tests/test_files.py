from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from needle.text.files import replacing, write_json
from needle.text.tokenizer import TextTokenizer


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(["wake me up at seven"], 600)

    def write(number: int) -> None:
        tokenizer.save(tmp_path)
        write_json(tmp_path / "manifest.json", {"number": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "tokenizer.json"]
    assert TextTokenizer.load(tmp_path).json == tokenizer.json


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("x", "old")]
