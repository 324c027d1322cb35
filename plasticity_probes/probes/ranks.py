"""How many dimensions the last hidden layers' features span."""

from plasticity_probes import rank
from plasticity_probes.probe import Curve, Findings, Probe, ProbeInput


class Ranks(Probe):
    """Every rank of the last hidden layers' features, raw and centred."""

    position = 2
    beside_fresh = True
    tags = ("srank", "pca_rank", "effective_rank", "stable_rank", "feature_rank", "singular_values")
    curves = (
        Curve("effective rank, centred", "effective_rank/centred", "last layers"),
        Curve("srank, centred", "srank/centred", "last layers"),
        Curve("effective rank, raw", "effective_rank/raw", "each alone"),
        Curve("srank, raw", "srank/raw", "each alone"),
    )

    def measure(self, given: ProbeInput) -> Findings:
        """From one decomposition a layer; says where there are fewer examples than features."""
        found = Findings()
        for name, features in given.features.items():
            samples, width = features.shape
            if samples < width:
                given.tell(f"ranks of {name}: {width} features, but only {samples} examples, which no rank can exceed")
            for definition, value in rank.ranks(features).items():
                centring, which = definition.split("/")
                found.scalars[f"{which}/{centring}/{name}"] = value
            if given.pictures:
                found.histograms[f"singular_values/raw/{name}"] = rank.singular_values(features)
        return found
