"""Task definitions: prompts, class names and rows of a task, one YAML file each.

``kind: classify`` (the default) chooses one of the task's labels; ``kind: answer`` answers a
question about a text in words. Built-in tasks are in ``definitions/``. Users name a file of their
own in the scenario, and other packages register tasks through the entry point group
``agentwire.tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agentwire.config import real_path
from agentwire.errors import DataError, ScenarioError
from agentwire.spec.document import Document, parse_document, read_document
from agentwire.spec.registry import Registry, suggestion
from agentwire.spec.schema import mapping_of, validate
from agentwire.wire.messages import Decoding, RelaySpec, TaskSpec

RelayMode = Literal["summary", "verbatim"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Relay(_Checked):
    """What the sender is asked to write as a text message; ``{text}`` stands for its text."""

    template: str = "Summarize the following text in one short sentence.\n\n{text}"
    max_new_tokens: Annotated[int, Field(ge=1, le=512)] = 32

    @model_validator(mode="after")
    def _holds_text_once(self) -> Relay:
        if self.template.count("{text}") != 1:
            raise ValueError("relay.template must hold {text} exactly once")
        return self


class HubSource(_Checked):
    """Where the rows are on the dataset hub.

    Attributes:
        dataset: repository id.
        config: configuration of the repository; None: its only one.
        text: columns that are joined by a space to the text.
        label: column with the class.
        splits: our split name -> theirs.
        labels: their class names, in the order of our ``labels``, where they differ from ours.
    """

    dataset: str
    config: str | None = None
    text: tuple[str, ...] = Field(min_length=1)
    label: str
    splits: dict[str, str] = Field(min_length=1)
    labels: tuple[str, ...] | None = None


class _Definition(_Checked):
    """What the kinds share."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    description: str = ""
    licence: str = ""
    family: str | None = None
    prompt: str = Field(min_length=1)
    text_prompt: str
    relay: Relay = Field(default_factory=Relay)
    rows: dict[str, tuple[str, ...]] = {}

    @field_validator("rows", mode="before")
    @classmethod
    def _one_file_is_a_list_of_one(cls, rows: Any) -> Any:
        if not isinstance(rows, dict):
            return rows
        return {
            split: [files] if isinstance(files, str) else files for split, files in rows.items()
        }

    @model_validator(mode="after")
    def _names_text_and_files_once(self) -> Self:
        if self.text_prompt.count("{text}") != 1:
            raise ValueError("text_prompt must hold {text} exactly once")
        files = [file for paths in self.rows.values() for file in paths]
        if not all(self.rows.values()) or len(set(files)) != len(files):
            raise ValueError("rows must give each split files of its own")
        return self

    def _relay_spec(self, relay: RelayMode) -> RelaySpec:
        template = self.relay.template if relay == "summary" else ""
        return RelaySpec(template, self.relay.max_new_tokens)


class TaskDefinition(_Definition):
    """One classification task.

    Attributes:
        name: name of the task and of its dataset.
        description: one line for people.
        licence: licence of the data.
        family: datasets of one family share sentences (``datasets.shares_sentences``).
        series: tasks of one series ask different things about the same texts, row by row. One
            bridge serves them all and is named after the series.
        labels: class names; label i of a row is ``labels[i]``.
        label_words: the word scored for each class, by default its name; the first tokens of the
            words must differ.
        prompt: follows the soft tokens in the receiver's input.
        text_prompt: what a model reads when it reads the text itself; holds ``{text}`` once.
        relay: how a text message is made.
        hub: where the hub has the rows.
        rows: split -> JSONL files with its rows; in a task file relative to that file.
    """

    kind: Literal["classify"] = "classify"
    series: str | None = None
    labels: tuple[str, ...] = Field(min_length=2)
    label_words: tuple[str, ...] = ()
    hub: HubSource | None = None

    @model_validator(mode="before")
    @classmethod
    def _words_are_labels_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and "labels" in data:
            return {"label_words": data["labels"], **data}
        return data

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if len(self.label_words) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.label_words)} label_words")
        for what, words in (("labels", self.labels), ("label_words", self.label_words)):
            if len(set(words)) != len(words):
                raise ValueError(f"{what} must be distinct")
        if not all(word.strip() == word and word for word in self.label_words):
            raise ValueError("label_words must be words without spaces around them")
        if self.hub and self.hub.labels and len(self.hub.labels) != len(self.labels):
            raise ValueError("hub.labels must name every class")
        return self

    def spec(self, relay: RelayMode = "summary") -> TaskSpec:
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
            relay=self._relay_spec(relay),
        )


class AnswerDefinition(_Definition):
    """One task whose questions are answered in words. Each row has its own question.

    Attributes: as of ``TaskDefinition``, and

        prompt, text_prompt: hold ``{question}`` once.
        max_new_tokens: length limit of an answer.
        stop: strings that end an answer.
    """

    kind: Literal["answer"]
    prompt: str = "\nQuestion: {question}\nAnswer:"
    text_prompt: str = "{text}\nQuestion: {question}\nAnswer:"
    max_new_tokens: Annotated[int, Field(ge=1, le=512)] = 24
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("\n",)

    labels: ClassVar[tuple[str, ...]] = ()
    label_words: ClassVar[tuple[str, ...]] = ()
    hub: ClassVar[None] = None
    series: ClassVar[str] = "reader"  # one reader bridge serves every question

    @model_validator(mode="after")
    def _names_the_question_once(self) -> Self:
        for key in ("prompt", "text_prompt"):
            if getattr(self, key).count("{question}") != 1:
                raise ValueError(f"{key} must hold {{question}} exactly once")
        return self

    def spec(self, relay: RelayMode = "summary") -> TaskSpec:
        """The task as messages name it; see ``TaskDefinition.spec``."""
        return TaskSpec(
            name=self.name,
            prompt=self.prompt,
            text_prompt=self.text_prompt,
            relay=self._relay_spec(relay),
            max_new_tokens=self.max_new_tokens,
            decoding=Decoding(stop=self.stop),
        )


Definition = TaskDefinition | AnswerDefinition
KINDS: Mapping[str, type[TaskDefinition] | type[AnswerDefinition]] = {
    "classify": TaskDefinition,
    "answer": AnswerDefinition,
}


def _built_in(name: str) -> Definition:
    file = resources.files("agentwire.task") / "definitions" / f"{name}.yaml"
    return parse_definition(file.read_text(encoding="utf-8"), file.name)


TASKS: Registry[Callable[[], Definition]] = Registry("agentwire.tasks", "task")
"""Functions that return a task's definition. A function of another package may be
``lambda: read_task(Path(__file__).with_name("my_task.yaml"))``."""

BUILT_IN = tuple(
    sorted(
        file.name.removesuffix(".yaml")
        for file in (resources.files("agentwire.task") / "definitions").iterdir()
        if file.name.endswith(".yaml")
    )
)
for _name in BUILT_IN:
    TASKS.add(_name, cache(partial(_built_in, _name)))


def parse_definition(text: str, source: str) -> Definition:
    """A definition from YAML text; ``source`` is the file's name. Raises a DataError, which names
    it, the line and the key, if it is not a definition."""
    return _checked(lambda: parse_document(text, Path(source)))


def read_task(file: Path) -> Definition:
    """A task file of a user; its ``rows`` are relative to it. Raises a DataError if it cannot be
    read, is not a definition, or has the name of a built-in task."""
    task = _checked(lambda: read_document(file))
    if task.name in BUILT_IN:
        raise DataError(
            f"{file}: the name {task.name!r} belongs to a built-in task.",
            hint="Give your task another name.",
        )
    if isinstance(task, TaskDefinition) and (task.series is not None or task.hub is not None):
        raise DataError(
            f"{file}: `series` and `hub` are for built-in tasks only.",
            hint="Put the rows into JSONL files and name them under `rows`.",
        )
    folder = real_path(file).parent
    rows = {
        split: tuple(str(folder / Path(path).expanduser()) for path in paths)
        for split, paths in task.rows.items()
    }
    return task.model_copy(update={"rows": rows})


def _checked(read: Callable[[], Document]) -> Definition:
    try:
        document = read()
        data = mapping_of(document, "a task")
        kind = data.get("kind", "classify")
        if kind not in (*KINDS,):
            raise ScenarioError(
                f"{document.lines['kind',]}: kind: there is no kind of task {kind!r}.",
                hint=suggestion(str(kind), KINDS, "Kinds"),
            )
        return validate(KINDS[kind], data, document.lines)
    except ScenarioError as error:
        raise DataError(
            error.message, hint=f"{error.hint} docs/tasks.md says what a task file holds."
        ) from None


def definitions() -> dict[str, Definition]:
    """Every built-in task by name, sorted."""
    return {name: TASKS.get(name)() for name in BUILT_IN}


def is_task_file(task: str) -> bool:
    """Whether ``task`` is the path of a task file and not a task's name."""
    return task.endswith((".yaml", ".yml"))


def load_definition(task: str) -> Definition:
    """The definition of a task.

    Args:
        task: the name of a built-in or installed task, or the path of a task file.

    Raises:
        DataError: there is none (the hint names the nearest), or the file is not a task.
    """
    if is_task_file(task):
        return read_task(Path(task).expanduser())
    if task not in TASKS:
        raise DataError(
            f"There is no task {task!r}.",
            hint=f"{suggestion(task, TASKS.names(), 'Tasks')} To add one of your own, write "
            "`task: {file: my_task.yaml}` (docs/tasks.md).",
        )
    return TASKS.get(task)()


def load_classification(task: str) -> TaskDefinition:
    """``load_definition`` of a task with labels; raises DataError for one of another kind."""
    definition = load_definition(task)
    if isinstance(definition, TaskDefinition):
        return definition
    raise DataError(
        f"{definition.name} is answered in words, and this needs a task with labels.",
        hint="Use a task of `kind: classify`; `agentwire data list` shows the kinds.",
    )


def load_answer_task(task: str) -> AnswerDefinition:
    """``load_definition`` of a task of questions; raises DataError for one of another kind."""
    definition = load_definition(task)
    if isinstance(definition, AnswerDefinition):
        return definition
    raise DataError(
        f"{definition.name} is a task with labels, and this needs questions.",
        hint="Use a task of `kind: answer`; `agentwire data list` shows the kinds.",
    )
