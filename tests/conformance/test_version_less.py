"""Files without `version` whose tables have the ids of a later schema, before every containerd."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import pytest

from runtimes.errors import ConfigError
from tests.conformance.test_corpus import V2, V3, check_way, dump, runc, told
from tests.support import binaries, pure_plan

MIRROR: Final = f"""\
[{V2}.registry.mirrors."docker.io"]
endpoint = ["https://registry-1.docker.io"]
"""
DROP_IN: Final = "/etc/containerd/conf.d/50-runc.toml"
IMPORTS: Final = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
FIRST: Final = '[plugins.cri.cni]\nbin_dir = "/opt/first"\n'
STARTS: Final = 2

FILES: Final[Mapping[str, pure_plan.Files]] = {
    "mirror": {pure_plan.CONFIG: MIRROR.encode()},
    "version 1": {pure_plan.CONFIG: b"version = 1\n" + MIRROR.encode()},
    "runc": {pure_plan.CONFIG: (MIRROR + runc(2)).encode()},
    "two and three": {pure_plan.CONFIG: (MIRROR + f'[{V3}.cni]\nbin_dirs = ["/opt/x"]\n').encode()},
    "root 2, drop-in": {
        pure_plan.CONFIG: ("version = 2\n" + IMPORTS + MIRROR).encode(),
        DROP_IN: runc(2).encode(),
    },
    "root 3, drop-in": {
        pure_plan.CONFIG: ("version = 3\n" + IMPORTS).encode(),
        DROP_IN: runc(2).encode(),
    },
    "root without, drop-in 2": {
        pure_plan.CONFIG: (IMPORTS + MIRROR).encode(),
        DROP_IN: b"version = 2\n" + runc(2).encode(),
    },
}


@pytest.fixture(params=binaries.LINES)
def binary(request: pytest.FixtureRequest) -> binaries.Binary:
    return binaries.find(request.param)


@pytest.mark.binary
@pytest.mark.parametrize("name", FILES)
def test_our_keys_are_where_the_binary_reads_them_at_every_start(
    name: str, binary: binaries.Binary
) -> None:
    files, wish = FILES[name], pure_plan.desired()
    loaded = binaries.load(binary, pure_plan.CONFIG, frozenset(files.items()))
    refusal = check_way(wish, files, binary)
    if "version = 3" in files[pure_plan.CONFIG].decode() and binary.line == "1.7":
        assert refusal is not None
        return
    assert loaded.ok
    assert refusal is None, str(refusal)
    after = pure_plan.after(files, pure_plan.plan(wish, files, partial(binaries.ask, binary)))
    starts = {str(told(start)) for start in _starts(binary, after)}
    assert len(starts) == 1


def _starts(binary: binaries.Binary, files: pure_plan.Files) -> list[dict[str, object]]:
    result = []
    for _ in range(STARTS):
        binaries.load.cache_clear()
        result.append(dict(dump(binary, files)))
    return result


@pytest.mark.binary
def test_options_are_inherited_from_a_drop_in_without_version(binary: binaries.Binary) -> None:
    files = FILES["root 2, drop-in"]
    after = pure_plan.after(
        files, pure_plan.plan(pure_plan.desired(), files, partial(binaries.ask, binary))
    )
    assert told(dump(binary, after)).handlers["nvidia"]["options.SystemdCgroup"] is True


@pytest.mark.binary
@pytest.mark.parametrize("line", ["2.3", "2.4"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_file_that_is_random_before_us_is_refused_with_that_reason(line: str, order: int) -> None:
    files = {pure_plan.CONFIG: "".join([FIRST, MIRROR][::order]).encode()}
    refusal = pure_plan.refusal(
        pure_plan.desired(), files, partial(binaries.ask, binaries.find(line))
    )
    assert refusal is not None
    assert refusal.why.startswith("it has no `version` and tables of two schema generations")
    assert "containerd config migrate" in refusal.hint


@pytest.mark.binary
def test_keys_that_were_written_for_another_containerd_are_reverted_first() -> None:
    """1.7 reads `plugins.cri` of this file, 2.3 the section it has: together they are random."""
    files, wish = FILES["mirror"], pure_plan.desired()
    old = pure_plan.plan(wish, files, partial(binaries.ask, binaries.find("1.7")))
    after, record = pure_plan.after(files, old), pure_plan.ownership(old)
    assert b"plugins.cri" in after[pure_plan.CONFIG]
    ask = partial(binaries.ask, binaries.find("2.3"))
    with pytest.raises(ConfigError) as caught:
        pure_plan.plan(wish, after, ask, record)
    assert caught.value.hint.startswith("run `nvidia-toolkit revert`, then install again")
    assert pure_plan.after(after, pure_plan.removal(wish, after, record, ask)) == dict(files)
