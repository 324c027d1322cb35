"""What a Stable-Baselines3 model cannot be given, and what does the same there."""

from collections.abc import Sequence

from agents.interventions.base import Intervention

LAYERS_OF_YOUR_OWN = "a features extractor with such layers, and net_arch=[] (docs/interventions_with_sb3.md)"
INSTEAD = dict.fromkeys(("batch_norm", "crelu", "dropout", "layer_norm", "spectral_norm"), LAYERS_OF_YOUR_OWN)
"""What does in Stable-Baselines3 what interventions that build the network do in our agents."""


def _activation_for(activation: Intervention) -> str:
    """What does the same in Stable-Baselines3."""
    if activation.kind == "fourier":
        return LAYERS_OF_YOUR_OWN + "; it doubles the columns, which no activation_fn may"
    names = {"leaky_relu": "LeakyReLU", "tanh": "Tanh", "gelu": "GELU", "swish": "SiLU"}
    function, slope = f"torch.nn.{names[activation.kind]}", activation.negative_slope
    if activation.kind == "leaky_relu" and slope != 0.01:
        function = f"partial({function}, {slope})"
    return f"policy_kwargs=dict(activation_fn={function})"


def refuse(interventions: Sequence[Intervention]) -> None:
    """ValueError, naming it, for an intervention that is not supported."""
    for one in interventions:
        kind = type(one)
        hooks = ("configure", "build", "value_head")
        builds = any(getattr(kind, hook) is not getattr(Intervention, hook) for hook in hooks)
        if builds and one.name != "nap":  # which is content with norms that are there already
            instead = _activation_for(one) if one.name == "activation" else INSTEAD.get(one.name)
            why = f"; instead: {instead}" if instead else ", and SB3 has nothing that does the same"
            raise ValueError(f"{one.name}: is a matter of building the network, which SB3 has done already{why}")
