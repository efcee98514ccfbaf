import json

import pytest

from fd_jax.inference.prompt_file import BadLine, PromptFileError, PromptLine, read_prompt_file


@pytest.fixture
def read(tmp_path):
    """Reads the given lines from a prompt file beside the photographs a.jpg and b.jpg."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()

    def read(*lines, start=b"", end=b"\n"):
        lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(start + end.join(lines))
        return read_prompt_file(path)

    return read


def reason(result):
    requests, [bad_line] = result
    assert requests == []
    assert bad_line.line == 1
    return bad_line.reason


def test_every_key_is_read(read, tmp_path):
    one = {
        "prompt": "a man <|image|> and a woman <|image|>, \u00e9t\u00e9",
        "references": ["b.jpg", str(tmp_path / "a.jpg")],
        "seed": 3,
        "output": "couple.png",
        "negative_prompt": "blurry",
    }
    references = ((tmp_path / "b.jpg",), (tmp_path / "a.jpg",))
    expected = PromptLine(1, one["prompt"], references, 3, "couple.png", "blurry")
    assert read(one) == ([expected], [])
    assert read(json.dumps(one, ensure_ascii=False).encode()) == ([expected], [])


def test_most_keys_may_be_left_out(read, tmp_path):
    assert read({"prompt": "snow"}) == ([PromptLine(1, "snow", (), None, "000001.png", "")], [])


def test_folders_are_those_of_the_prompt_file(tmp_path, monkeypatch):
    (tmp_path / "sub" / "faces").mkdir(parents=True)
    (tmp_path / "sub" / "faces" / "a.jpg").touch()
    line = {"prompt": "a man <|image|>", "references": ["faces/a.jpg"]}
    (tmp_path / "sub" / "prompts.jsonl").write_text(json.dumps(line))
    monkeypatch.chdir(tmp_path)
    [request], [] = read_prompt_file("sub/prompts.jsonl")
    assert request.references[0][0].is_file()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_blank_lines_and_comments_count_but_hold_nothing(read, start, end):
    lines = (b"# snow \xff", b"", {"prompt": "ice"}, b" \t ", b'  {"prompt": "sea"} ', b"#", b"")
    requests, bad_lines = read(*lines, start=start, end=end)
    found = [(request.line, request.prompt, request.output) for request in requests]
    assert found == [(3, "ice", "000003.png"), (5, "sea", "000005.png")]
    assert bad_lines == []


def test_an_empty_file_holds_nothing(read):
    assert read(b"") == ([], [])
    assert read(start=b"\xef\xbb\xbf") == ([], [])


def test_a_bad_line_spoils_no_other(read):
    good = {"prompt": "snow"}
    requests, bad_lines = read(good, b"{", good, b'{"prompt": "\xff"}', good, [], good)
    assert [request.line for request in requests] == [1, 3, 5, 7]
    assert [bad_line.line for bad_line in bad_lines] == [2, 4, 6]
    assert all(isinstance(bad_line, BadLine) for bad_line in bad_lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"snow", "not valid JSON: Expecting value at character 1"),
        (b'{"prompt": "snow",}', "not valid JSON: "),
        (b'{"prompt": "snow"} {}', "not valid JSON: Extra data at character 20"),
        (b'{"prompt": "sn\xffow"}', "not valid UTF-8 at byte 15"),
        (b'{"prompt": "snow", \0"seed": 1}', "not valid JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b'{"prompt": "snow", "prompt": "ice"}', "key 'prompt' appears more than once"),
        ([], "a list, expected an object with the keys prompt, references, seed, output, neg"),
        ("snow", "a string, expected an object"),
        (None, "null, expected an object"),
    ],
)
def test_lines_that_are_no_objects(read, line, message):
    assert message in reason(read(line))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "snow"}, "unknown key 'promt', known are prompt, references, seed, output, neg"),
        ({"prompt": None}, "prompt is null, expected a string"),
        ({"prompt": ["snow"]}, "prompt is a list, expected a string"),
        ({"prompt": "a\ud800"}, "prompt is not valid text: '\\ud800'"),
        ({"negative_prompt": 3}, "negative_prompt is a whole number, expected a string"),
        ({"negative_prompt": "a <|image|>"}, "negative_prompt has a marker"),
        ({"references": "a.jpg"}, "references is a string, expected a list of strings"),
        ({"references": ["a.jpg", 1]}, "references has a list with a whole number in it, expected"),
        ({"references": [["a.jpg", 1]]}, "expected a string for each person, or a list of str"),
        ({"references": [[]]}, "references has an empty list, expected a string for each person"),
        ({"references": [["a.jpg"] * 17]}, "17 photographs of a person, expected 16 at most"),
        ({"references": [["a.jpg", "c.jpg"]]}, "c.jpg' does not exist or is no file"),
        ({"references": None}, "references is null"),
        ({"references": []}, "1 markers <|image|> in the prompt and 0 references"),
        ({"references": ["a.jpg", "b.jpg"]}, "1 markers <|image|> in the prompt and 2 references"),
        ({"prompt": "snow"}, "0 markers <|image|> in the prompt and 1 references"),
        (
            {"prompt": "a man <|image|> " * 5, "references": ["a.jpg"] * 5},
            "5 subjects, expected 4 at most",
        ),
        ({"references": ["c.jpg"]}, "c.jpg' does not exist or is no file"),
        ({"references": [""]}, "does not exist or is no file"),
        ({"references": ["a.jpg/b.jpg"]}, "does not exist or is no file"),
        ({"references": ["a\0.jpg"]}, "does not exist or is no file"),
        ({"references": ["\ud800.jpg"]}, "does not exist or is no file"),
        ({"references": ["a" * 5000]}, "does not exist or is no file"),
        ({"seed": True}, "seed is true or false, expected a whole number from 0 to 4294967295"),
        ({"seed": "3"}, "seed is a string"),
        ({"seed": 3.0}, "seed is a decimal number"),
        ({"seed": float("nan")}, "seed is a decimal number"),
        ({"seed": -1}, "seed is -1, expected"),
        ({"seed": 2**32}, "seed is 4294967296, expected"),
        ({"output": 3}, "output is a whole number, expected a string"),
        ({"output": ""}, "output is '', expected a file name"),
        ({"output": ".png"}, "output is '.png', expected a file name"),
        ({"output": "/tmp/a.png"}, "output is '/tmp/a.png', expected a plain file name"),
        ({"output": "a/b.png"}, "expected a plain file name"),
        ({"output": "..\\a.png"}, "expected a plain file name"),
        ({"output": "C:\\a.png"}, "expected a plain file name"),
        ({"output": ".."}, "expected a plain file name"),
        ({"output": "a\0.png"}, "expected a plain file name"),
        ({"output": "a\n.png"}, "expected a plain file name"),
        ({"output": "\udce9.png"}, "output is not valid text"),
        ({"output": "\u00e9" * 126}, "has 256 bytes, expected 255 at most"),
    ],
)
def test_values_that_cannot_be_used(read, changes, message):
    good = {"prompt": "a man <|image|>", "references": ["a.jpg"]}
    assert read(good)[1] == []
    assert message in reason(read(good | changes))


def test_a_person_may_have_several_photographs(read, tmp_path):
    line = {"prompt": "a man <|image|> and a man <|image|>"}
    [found] = read(line | {"references": [["a.jpg", "b.jpg"], "b.jpg"]})[0]

    a, b = tmp_path / "a.jpg", tmp_path / "b.jpg"
    assert found.references == ((a, b), (b,))


def test_a_prompt_is_needed(read):
    assert reason(read({"seed": 3})) == "there is no prompt"


def test_reasons_stay_short(read):
    for line in ({"a" * 10**5: 1}, {"prompt": "a", "output": "a/" * 10**5}, b'{"a": ' * 10**5):
        assert len(reason(read(line))) < 300


def test_a_seed_of_null_is_none(read):
    [line], [] = read({"prompt": "snow", "seed": None})
    assert line.seed is None


@pytest.mark.parametrize(
    "start", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"PK\x03\x04", b"\x1f\x8b\n"]
)
def test_images_and_archives_are_refused_as_a_whole(tmp_path, start):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(start + b"\n\xff" * 100)
    with pytest.raises(PromptFileError, match=r"prompts.jsonl starts with b'.*expected text"):
        read_prompt_file(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('{"prompt": "a man"}\n{"prompt": "snow"}'.encode(encoding))
    with pytest.raises(PromptFileError, match=r"prompts.jsonl is UTF-16 or UTF-32, expected UTF-8"):
        read_prompt_file(path)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_seeds(read, seed):
    [request], [] = read({"prompt": "snow", "seed": seed})
    assert request.seed == seed


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("snow", "snow.png"),
        ("snow.png", "snow.png"),
        ("Snow.PNG", "Snow.PNG"),
        ("v1.5", "v1.5.png"),
        ("snow.jpg", "snow.jpg.png"),
        ("\u5973\u4eba \U0001f600", "\u5973\u4eba \U0001f600.png"),
        ("a" * 251, "a" * 251 + ".png"),
    ],
)
def test_outputs_are_png_files(read, name, output):
    [request], [] = read({"prompt": "snow", "output": name})
    assert request.output == output


@pytest.mark.parametrize("name", ["snow", "snow.png", "SNOW.PNG", "Snow"])
def test_no_two_lines_write_one_file(read, name):
    first, second, third = ({"prompt": "snow", "output": name} for name in ("snow.png", name, "b"))
    requests, [bad_line] = read(first, second, third)
    assert [request.line for request in requests] == [1, 3]
    assert bad_line.line == 2
    assert bad_line.reason.endswith("is that of line 1 already")


def test_accents_coded_in_two_ways_are_one_name(read):
    _, bad_lines = read(
        *({"prompt": "snow", "output": f} for f in ("\u00c9t\u00e9", "e\u0301te\u0301"))
    )
    assert len(bad_lines) == 1


def test_names_given_clash_with_names_by_line(read):
    requests, bad_lines = read({"prompt": "a", "output": "000002.png"}, {"prompt": "b"})
    assert [request.line for request in requests] == [1]
    assert bad_lines == [(2, "output '000002.png' is that of line 1 already")]


def test_a_bad_line_takes_no_name(read):
    requests, _ = read({"prompt": "a", "output": "b", "seed": -1}, {"prompt": "a", "output": "b"})
    assert [request.line for request in requests] == [2]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptFileError, match=r"nowhere.jsonl cannot be read: No such file"):
        read_prompt_file(tmp_path / "nowhere.jsonl")
    with pytest.raises(PromptFileError, match="cannot be read: Is a directory"):
        read_prompt_file(tmp_path)
    with pytest.raises(PromptFileError, match="cannot be read: embedded null byte"):
        read_prompt_file("a\0b")


def test_each_photograph_is_looked_for_once(read, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("os.path.isfile", lambda path: asked.append(path) is None)
    line = {"prompt": "a man <|image|> and a man <|image|>", "references": ["a.jpg", "b.jpg"]}
    requests, [] = read(*[line] * 100)
    assert len(requests) == 100
    assert asked == [tmp_path / "a.jpg", tmp_path / "b.jpg"]


def test_traces_need_names_too(tmp_path):
    names = "a.png", "a_trace.png", "B_TRACE.png", "b.PNG", "c" * 250 + ".png"
    lines = [json.dumps({"prompt": "snow", "output": name}) for name in names]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines))
    requests, bad_lines = read_prompt_file(path)
    assert [request.output for request in requests] == list(names)
    assert [request.trace for request in requests][:2] == ["a_trace.png", "a_trace_trace.png"]
    assert bad_lines == []

    requests, bad_lines = read_prompt_file(path, traces=True)
    assert [request.output for request in requests] == ["a.png", "B_TRACE.png"]
    assert [bad_line.reason[:60] for bad_line in bad_lines[:2]] == [
        "output 'a_trace.png' is that of line 1 already",
        "trace 'b_trace.png' is that of line 3 already",
    ]
    assert bad_lines[2].reason.endswith("has 260 bytes, expected 255 at most")
