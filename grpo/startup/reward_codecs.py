"""The codecs that rewards are given, which must be those that the policy writes codes of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from grpo.codec.codec import SPEC_FILE, load_codec
from grpo.codec.vocabulary import CODECS_FOLDER
from grpo.policy.families import ModelFamily
from rewards.scoring.specs import RewardSpec


def check_codecs(rewards: Mapping[str, RewardSpec], family: ModelFamily) -> None:
    """Raise ValueError if a reward's argument `codec` is another codec than the model's own of that name.

    A folder that is no codec is left to the reward, and so is a codec whose name the model does not know.
    """
    for name, reward in rewards.items():
        folder = reward.args.get("codec")
        if not isinstance(folder, str) or not (Path(folder) / SPEC_FILE).is_file():
            continue
        spec = load_codec(folder).spec
        grown_with = {own.name: own.digest for own in family.vocabulary.codecs} if family.vocabulary else {}
        if (digest := grown_with.get(spec.name, spec.digest)) != spec.digest:
            raise ValueError(
                f"rewards.{name}.args.codec={folder} (digest {spec.digest[:12]}) is another codec than "
                f"{family.path}/{CODECS_FOLDER}/{spec.name} (digest {digest[:12]}), which the model was grown with"
            )
