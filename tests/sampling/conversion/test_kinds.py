"""A kind of weights has a name on the command line, a pattern of its names, and an entry."""

from typing import get_args

from ddpm_sa.checkpoints.entries import NAME_PATTERNS
from sampling.conversion.kinds import KINDS
from sampling.conversion.settings import COMMON, KindName, Settings


def test_every_kind_is_known_everywhere() -> None:
    assert set(get_args(KindName)) == set(KINDS) == set(NAME_PATTERNS)


def test_every_setting_applies_to_some_kind() -> None:
    applied = COMMON.union(*(kind.settings for kind in KINDS.values()))
    assert applied == set(Settings.__dataclass_fields__)
