"""The whole run as frozen, validated models: YAML in, dotted overrides, YAML out, JSON schema for forms.

Defaults are the paper's (arXiv 2408.05088). Every mistake is reported in one sentence, before anything starts.
"""

from unic_core.config.base import (
    Frozen,
)
from unic_core.config.data import (
    AugmentConfig,
    DataConfig,
    DatasetConfig,
    JitterConfig,
    MixConfig,
)
from unic_core.config.evaluation import (
    EvaluationConfig,
    ProbeConfig,
)
from unic_core.config.models import (
    LadderConfig,
    LinearNormConfig,
    MLPConfig,
    ProjectorConfig,
    StudentConfig,
    TeacherConfig,
    TokenLoss,
    TransformerConfig,
)
from unic_core.config.objective import (
    BalancerConfig,
    BatchConfig,
    EmaConfig,
    EqualConfig,
    FixedConfig,
    FrozenConfig,
    IdentityConfig,
    LossConfig,
    LossRankedConfig,
    PhiSConfig,
    StandardizerConfig,
    UniformConfig,
)
from unic_core.config.run import (
    RunConfig,
)
from unic_core.config.tasks import (
    DepthConfig,
    SegmentationConfig,
    TaskConfig,
    ZeroShotConfig,
)
from unic_core.config.text import (
    dump_config,
    json_schema,
    load_config,
    parse_config,
    parse_yaml,
    read_config,
)
from unic_core.config.training import (
    ClusterConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentConfig",
    "BalancerConfig",
    "BatchConfig",
    "ClusterConfig",
    "DataConfig",
    "DatasetConfig",
    "DepthConfig",
    "EmaConfig",
    "EqualConfig",
    "EvaluationConfig",
    "FixedConfig",
    "Frozen",
    "FrozenConfig",
    "IdentityConfig",
    "JitterConfig",
    "LadderConfig",
    "LinearNormConfig",
    "LossConfig",
    "LossRankedConfig",
    "MLPConfig",
    "MixConfig",
    "OptimizerConfig",
    "PhiSConfig",
    "ProbeConfig",
    "ProjectorConfig",
    "RunConfig",
    "SegmentationConfig",
    "StandardizerConfig",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TokenLoss",
    "TrackingConfig",
    "TrainingConfig",
    "TransformerConfig",
    "UniformConfig",
    "ZeroShotConfig",
    "dump_config",
    "json_schema",
    "load_config",
    "parse_config",
    "parse_yaml",
    "read_config",
]
