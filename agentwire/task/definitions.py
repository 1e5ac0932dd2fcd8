"""Task definitions: one YAML file a task in ``definitions/``, and what a wire message needs of it.

The file says what the classes are called in the dataset (``labels``), which word stands for each
in an answer (``label_words``, same order), and what models are asked. All methods of a receiver
are scored over the same words.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentwire.errors import DataError
from agentwire.wire.messages import RelaySpec, TaskSpec


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Relay(_Strict):
    """What the sender is asked when it makes a text message (``{text}`` stands for its text)."""

    template: str
    max_new_tokens: Annotated[int, Field(ge=1, le=512)] = 32

    @model_validator(mode="after")
    def _holds_text_once(self) -> Relay:
        if self.template.count("{text}") != 1:
            raise ValueError("relay.template must hold {text} exactly once")
        return self


class HubSource(_Strict):
    """Where the rows are on the dataset hub.

    Attributes:
        dataset: repository id.
        config: configuration of the repository; None: its only one.
        text: columns that are joined by a space to the text.
        label: column with the class.
        splits: our split name -> theirs.
        labels: their class names in their order, where they differ from ours; row labels are
            theirs and count in this order, which must be ours too.
    """

    dataset: str
    config: str | None = None
    text: tuple[str, ...] = Field(min_length=1)
    label: str
    splits: dict[str, str] = Field(min_length=1)
    labels: tuple[str, ...] | None = None


class TaskDefinition(_Strict):
    """One classification task.

    Attributes:
        name: name of the dataset and of the task.
        description: one line for people.
        licence: of the data.
        family: datasets with the same family share sentences (``datasets.shares_sentences``).
        series: tasks of one series ask different things about the same texts, row by row; one
            bridge serves them all and has the series' name in its own.
        labels: class names in the dataset's order: label i of a row is ``labels[i]``.
        label_words: the word scored for each class; their first tokens must differ.
        prompt: follows the soft tokens in the receiver's input.
        text_prompt: what a model reads when it reads the text itself; holds ``{text}`` once.
        relay: how a text message is made.
        hub: where the hub has the rows.
    """

    name: str
    description: str
    licence: str
    family: str | None = None
    series: str | None = None
    labels: tuple[str, ...] = Field(min_length=2)
    label_words: tuple[str, ...]
    prompt: str = Field(min_length=1)
    text_prompt: str
    relay: Relay
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> TaskDefinition:
        if len(self.label_words) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.label_words)} label_words")
        for what, words in (("labels", self.labels), ("label_words", self.label_words)):
            if len(set(words)) != len(words):
                raise ValueError(f"{what} must be distinct")
        if not all(word.strip() == word and word for word in self.label_words):
            raise ValueError("label_words must be words without spaces around them")
        if self.text_prompt.count("{text}") != 1:
            raise ValueError("text_prompt must hold {text} exactly once")
        if self.hub and self.hub.labels and len(self.hub.labels) != len(self.labels):
            raise ValueError("hub.labels must name every class")
        return self

    def spec(self, relay: Literal["summary", "verbatim"] = "summary") -> TaskSpec:
        """The task as messages name it.

        Args:
            relay: ``summary``: the sender writes the text message (``relay.template``);
                ``verbatim``: the text itself crosses.
        """
        return TaskSpec(
            name=self.name,
            prompt=self.prompt,
            text_prompt=self.text_prompt,
            labels=self.label_words,
            relay=RelaySpec(
                template=self.relay.template if relay == "summary" else "",
                max_new_tokens=self.relay.max_new_tokens,
            ),
        )


def parse_definition(text: str, source: str) -> TaskDefinition:
    """A definition from YAML.

    Args:
        text: the YAML.
        source: file name, for errors.

    Raises:
        DataError: not YAML, or not a definition; names ``source`` and the key.
    """
    hint = "See agentwire/task/definitions/sst2.yaml for what a definition holds."
    try:
        return TaskDefinition.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{source}{line}: not valid YAML.", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "definition"
        raise DataError(f"{source}: {key}: {first['msg']}.", hint=hint) from error


@cache
def definitions() -> dict[str, TaskDefinition]:
    """Every task that comes with the package, by name, sorted."""
    folder = resources.files("agentwire.task") / "definitions"
    found: dict[str, TaskDefinition] = {}
    for file in sorted(folder.iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            definition = parse_definition(file.read_text(encoding="utf-8"), file.name)
            found[definition.name] = definition
    return found


def load_definition(name: str) -> TaskDefinition:
    """The definition of this name.

    Raises:
        DataError: there is none; names the nearest ones.
    """
    known = definitions()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=2)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    raise DataError(
        f"The dataset {name!r} is not known.", hint=f"{meant} See `agentwire data list`."
    )
