"""Command-line arguments as dataclasses, parsed by tyro, with errors of one line.

A command declares its arguments as a subclass of `Args` with a docstring below each field. A
field without a default is required. A subclass of `ConfigArgs` also takes every field of the
config as --section.field.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

import tyro
from tyro import conf
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    UnrecognizedArgs,
    on_parse_error,
)
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)
from tyro.constructors._struct_spec_dataclass import dataclass_rule

from ssd_jax.cli.run import version_line
from ssd_jax.config import Config, ConfigError, ExtraBlock, Range
from ssd_jax.streams import program_name

Flag = Annotated[bool, conf.FlagCreatePairsOff]
"""Flag without a --no- form."""
CommaSeparated = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B",
        instance_from_str=lambda words: tuple(words[0].split(",")),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""Values joined by commas."""
Checkpoint = Annotated[
    str,
    conf.arg(
        metavar="CHECKPOINT",
        help="Run, e.g. runs/quickstart, checkpoint, file of weights, hf://USER/REPO, or published "
        "weights by name, e.g. ssd300-vgg16-coco; see ssd-jax weights list.",
    ),
]
"""Argument that `ssd_jax.weights.trained.find_trained` resolves."""

_HELP = {"-h", "--help"}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Arguments that every command takes."""

    main_flag: ClassVar[str] = ""
    """Flag suggested for a word that stands alone."""
    subcommand: ClassVar[str] = ""
    """Name of the subcommand, for the usage line."""
    advice: ClassVar[Mapping[str, str]] = {}
    """Errors for flags that belong to another mode of the command."""

    version: Flag = False
    """Show the versions and exit."""


@dataclass(frozen=True, kw_only=True)
class ConfigArgs(Args):
    """Arguments of a command whose config can be changed field by field."""

    overrides: Annotated[Config, conf.arg(name="")] = field(default_factory=Config)
    """The config; see `override`."""


@dataclass(frozen=True, kw_only=True)
class ProcessArgs(ConfigArgs):
    """Arguments that start one of several processes."""

    distributed: Flag = False
    """Run as one of several processes, which JAX finds from SLURM, Kubernetes or a TPU pod."""
    coordinator: Annotated[str | None, conf.arg(metavar="HOST:PORT")] = None
    """Address where process 0 listens, if the processes are not found automatically."""
    processes: int | None = None
    """Number of processes, with --coordinator."""
    process: int | None = None
    """Index of this process, with --coordinator."""
    peer_timeout: int = 60
    """Time without a sign of life after which another process counts as lost (seconds)."""

    def join_processes(self) -> AbstractContextManager[None]:
        """Join the processes of the run; see `ssd_jax.distributed.distributed_context`."""
        from ssd_jax.distributed import distributed_context

        return distributed_context(
            distributed=self.distributed,
            coordinator=self.coordinator,
            processes=self.processes,
            process=self.process,
            peer_timeout=self.peer_timeout,
        )


_SHARED = {each.name for each in dataclasses.fields(ProcessArgs)}
_ArgsT = TypeVar("_ArgsT", bound=Args)


def has_flag(arguments: Sequence[str], *flags: str) -> bool:
    """Return whether one of the flags is among the arguments."""
    return any(argument.partition("=")[0] in flags for argument in arguments)


def parse_args(kind: type[_ArgsT], arguments: Sequence[str]) -> _ArgsT:
    """Parse the arguments of a command; --help and --version print and exit.

    The config of a `ConfigArgs` is left for `override`, which needs the file to start from. So is
    --help, if the file is named.

    Raises:
        ConfigError: an argument is missing, unknown or invalid.
    """
    if "--version" in arguments:
        print(version_line())
        raise SystemExit(0)
    if not issubclass(kind, ConfigArgs):
        args = _parse(kind, arguments, Config())
    else:
        asks_help = has_flag(arguments, *_HELP)
        if asks_help and not has_flag(arguments, kind.main_flag):
            _parse(kind, arguments, Config())
        try:
            args = _parse(kind, arguments, None)
        except ConfigError:
            if asks_help:
                _parse(kind, arguments, Config())
            raise
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        value = getattr(args, name)
        for limits in _ranges(annotation):
            if value is not None and value not in limits:
                raise ConfigError(f"{_flag(name)} is {value}; use a number {limits}")
    return args


def override(
    config: Config,
    arguments: Sequence[str],
    kind: type = Config,
) -> Config:
    """Replace the fields of a config that the arguments name as --section.field VALUE.

    --help lists every field with its value in `config` and exits.

    Args:
        config: values of the fields that are not named.
        arguments: the command line.
        kind: the `ConfigArgs` of the command; or Config, if the command's flags are removed.

    Raises:
        ConfigError: an argument is unknown or a value is invalid.
    """
    args: Any = _parse(kind, arguments, config)
    return typing.cast(Config, args if kind is Config else args.overrides)


def _parse(
    kind: Any,
    arguments: Sequence[str],
    config: Config | None,
) -> Any:
    """Parse with tyro.

    Without `config`, neither build it nor reject fields of it that only another config has.
    """

    def fail(event: ParseErrorEvent) -> NoReturn:
        raise ConfigError(_describe(event, kind, arguments))

    options: dict[str, Any] = {
        "prog": f"{program_name()} {getattr(kind, 'subcommand', '')}".strip(),
        "args": list(arguments),
        "config": (conf.DisallowNone,),
        "registry": make_registry(config),
    }
    with on_parse_error(fail):
        if config is None:
            args, unknown = tyro.cli(kind, add_help=False, return_unknown_args=True, **options)
        else:
            return tyro.cli(kind, **options)
    unknown = [token for token in unknown if token not in _HELP]
    if unknown and not (unknown[0].startswith("--") and "." in unknown[0]):
        raise ConfigError(_unknown(unknown[0], kind, arguments))
    return args


def make_registry(config: Config | None) -> ConstructorRegistry:
    """Create tyro's rules: ranges in the help, `config` as the default, extra blocks as numbers."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def _extra_block(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[ExtraBlock] | None:
        if info.type is not ExtraBlock:
            return None
        names = [each.name for each in dataclasses.fields(ExtraBlock)]
        return PrimitiveConstructorSpec(
            nargs=len(names),
            metavar=" ".join(names).upper(),
            instance_from_str=lambda words: ExtraBlock(*map(int, words)),
            is_instance=lambda value: isinstance(value, ExtraBlock),
            str_from_instance=lambda block: [str(n) for n in dataclasses.astuple(block)],
        )

    @registry.struct_rule
    def _add_ranges(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is ExtraBlock:
            return None
        if info.type is Config:
            info = dataclasses.replace(info, default=config or Config())
        spec = dataclass_rule(info)
        if spec is None:
            return None
        # Arguments that many commands share come last.
        fields = sorted(map(_add_range, spec.fields), key=lambda each: each.name in _SHARED)
        in_config = info.type.__module__ == Config.__module__
        build = _ignore if in_config and config is None else spec.instantiate
        return StructConstructorSpec(build, tuple(fields))

    return registry


def _ignore(**_: Any) -> None:
    """Build nothing."""


def _add_range(spec: StructFieldSpec) -> StructFieldSpec:
    """Add the range of a field to its help, and leave out a default that its help explains."""
    annotation: Any = spec.type
    limits = list(map(str, dict.fromkeys(_ranges(annotation))))
    docstring = spec.helptext

    def helptext() -> str:
        text = docstring() if callable(docstring) else docstring
        text = " ".join((text or "").split())
        return f"{text} Range: {'; '.join(limits)}." if limits else text

    if spec.default in (None, ()):
        annotation = Annotated[annotation, conf.arg(help_behavior_hint="")]
    return dataclasses.replace(spec, type=annotation, helptext=helptext)


def _ranges(annotation: Any) -> Iterator[Range]:
    for part in typing.get_args(annotation):
        if isinstance(part, Range):
            yield part
        else:
            yield from _ranges(part)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flags(section: Any, prefix: str = "") -> Iterator[str]:
    """List the flags of a dataclass."""
    hints = typing.get_type_hints(section)
    annotated = typing.get_type_hints(section, include_extras=True)
    for each in dataclasses.fields(section):
        metadata = getattr(annotated[each.name], "__metadata__", ())
        # A flag may have another name than its field.
        alias = next((m.name for m in metadata if getattr(m, "name", None)), each.name)
        name, kind = f"{prefix}{alias}", hints[each.name]
        if dataclasses.is_dataclass(kind):
            yield from _flags(kind, "" if kind is Config else f"{name}.")
        else:
            yield _flag(name)
        if kind is bool and prefix:
            yield _flag(f"{prefix}no-{each.name}")


def _describe(event: ParseErrorEvent, kind: Any, arguments: Sequence[str]) -> str:
    """Return the error for what tyro rejects."""
    match event:
        case UnrecognizedArgs(tokens=[token, *_]) | MissingArgs(unrecognized_tokens=[token, *_]):
            return _unknown(token, kind, arguments)
        case MissingArgs(missing_arguments=[missing, *_]):
            helptext: Any = missing.arg.field.helptext
            text = helptext() if callable(helptext) else helptext
            return f"{_name(missing.arg)} is missing ({text.rstrip('.')}); see --help"
        case BadValue(argument=argument):
            count = argument.lowered.nargs
            return f"{_name(argument)} needs {'a value' if count == 1 else f'{count} values'}"
        case InvalidChoice(argument=argument, value=value, choices=choices):
            return f"{_name(argument)} is {value!r}; use one of {', '.join(choices)}"
        case InstantiationFailure(argument=argument, message=message):
            return f"{_name(argument)}: {message}" if argument else message
    return "the arguments cannot be parsed; see --help"


def _name(argument: Any) -> str:
    if argument.is_positional():
        return str(argument.field.intern_name).upper()
    return str(argument.lowered.name_or_flags[0])


def _unknown(token: str, kind: Any, arguments: Sequence[str]) -> str:
    """Return the error for an unknown argument, with the flags it may have been meant for."""
    if not token.startswith("-"):
        main_flag = getattr(kind, "main_flag", "")
        stray = main_flag and not has_flag(arguments, main_flag)
        advice = f"write {main_flag} {token}" if stray else "take it out"
        return f"unexpected argument {token!r}; {advice}"
    flag = token.partition("=")[0].replace("_", "-")
    if flag in getattr(kind, "advice", {}):
        return str(kind.advice[flag])
    every = list(_flags(kind))
    meant = [each for each in every if each.rpartition(".")[2] == flag.lstrip("-")]
    meant = meant or difflib.get_close_matches(flag, every, n=1)
    advice = f"; perhaps you meant {' or '.join(meant)}" if meant else ""
    return f"unknown argument {flag}{advice}; see --help for all of them"
