"""Mutates files and reads them, in a process that watches what is executed.

python -m tests.helpers.fuzz READERS FOLDER ROUNDS

READERS is a module whose function `readers(folder)` yields the name of a reader, the content of its
file, a function that reads a changed content, and what every refusal has to name. It may also yield
its own mutation.
"""

import importlib
import json
import pathlib
import random
import sys
import time
import warnings

EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.")
WORDS = (
    b"this.Zen",
    b"\0",
    b"-1",
    b"99999999999999999999",
    b"[" * 2000,
    b"{}",
    b"null",
    b"NaN",
    b"../../",
    b'"\\ud800"',
    b"cos\nsystem\n(Vtrue\ntR",
)


def mutate(rng, content):
    """Flips, cuts, repeats, inserts."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(max(len(content), 1))
        kind = rng.randrange(5)
        if kind == 0 and content:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            content[place:place] = rng.choice(WORDS)
        elif kind == 3:
            content[place:place] = content[: rng.randrange(64)]
        elif content:
            content[place : place + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
    return bytes(content)


def mutate_json(rng, content):
    """Replaces a value somewhere in a JSON file by one of another kind, or mutates its text."""
    if rng.random() < 0.4:
        return mutate(rng, content)
    tree = json.loads(content)
    odd = [None, True, -1, 0, 1e308, 10**30, "", "x", "\ud800", [], [[]], {}, {"x": []}, [None]]
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            break
        key = rng.choice(list(keys))
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        if isinstance(at, dict) and rng.random() < 0.2:
            del at[key]
        else:
            at[key] = rng.choice(odd)
        break
    return json.dumps(tree).encode()


def main(module, folder, rounds):
    """Prints, for each reader, how many files were read, refused, and which ones went wrong."""
    from fd_jax.errors import InputError

    rng = random.Random(0)
    warnings.simplefilter("ignore")
    counts = {}
    for name, content, read, named, *mutation in module.readers(pathlib.Path(folder)):
        change = mutation[0] if mutation else mutate
        read(content)  # imports what it needs
        count = counts[name] = {"read": 0, "refused": 0, "wrong": [], "slowest": 0.0}
        for _ in range(rounds):
            # What lies beyond is padding.
            mutated = change(rng, content[:8192]) + content[8192:]
            WATCH.append(name)
            begin = time.perf_counter()
            try:
                read(mutated)
                count["read"] += 1
            except InputError as error:
                count["refused"] += 1
                if named not in str(error):
                    count["wrong"].append(f"not named: {error!s:.200}")
            except Exception as error:
                count["wrong"].append(f"{type(error).__name__}: {error!s:.200}")
            finally:
                WATCH.pop()
            count["slowest"] = max(count["slowest"], round(time.perf_counter() - begin, 2))
    print(json.dumps({"counts": counts, "executed": EXECUTED}))


WATCH, EXECUTED = [], []


def _audit(event, arguments):
    if WATCH and (
        event.startswith(EXECUTES)
        or (event == "import" and arguments[0] in ("this", "antigravity", "os"))
    ):
        EXECUTED.append(f"{WATCH[-1]}: {event} {arguments!r:.200}")


if __name__ == "__main__":
    sys.addaudithook(_audit)
    main(importlib.import_module(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
