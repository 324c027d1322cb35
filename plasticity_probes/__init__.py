"""Measurements of plasticity as pure functions of tensors, on the device where the tensors lie. Needs torch alone."""

from plasticity_probes.adam import adam_statistics
from plasticity_probes.churn import greedy_action_churn, policy_churn, value_churn
from plasticity_probes.curvature import HessianEigenvalues, hessian_eigenvalues, hessian_vector_product
from plasticity_probes.dormancy import (
    dead_fraction,
    dead_units,
    dormant_fraction,
    dormant_units,
    inactive_fraction,
    inactive_units,
    linearized_fraction,
    linearized_units,
    pooled_fraction,
    preactivation_statistics,
    unit_scores,
)
from plasticity_probes.gradients import (
    cluster_order,
    cosine_matrix,
    gradient_covariance,
    gradient_gram,
    gradient_norms,
    negative_share,
    per_example_gradients,
)
from plasticity_probes.norms import (
    effective_learning_rate,
    global_norm,
    mean_abs_weight,
    snapshot,
    weight_change,
    weight_norms,
)
from plasticity_probes.ntk import ntk, ntk_statistics
from plasticity_probes.prober import Prober
from plasticity_probes.rank import effective_rank, feature_rank, pca_rank, ranks, singular_values, srank, stable_rank
from plasticity_probes.subject import Readout, Subject
from plasticity_probes.targets import q_statistics, target_statistics, td_error_statistics
from plasticity_probes.trainability import held_out_accuracy, random_function_labels, trainability
from plasticity_probes.units import HiddenLayer, activations, hidden_layers

__all__ = [
    "HessianEigenvalues",
    "HiddenLayer",
    "Prober",
    "Readout",
    "Subject",
    "activations",
    "adam_statistics",
    "cluster_order",
    "cosine_matrix",
    "dead_fraction",
    "dead_units",
    "dormant_fraction",
    "dormant_units",
    "effective_learning_rate",
    "effective_rank",
    "feature_rank",
    "global_norm",
    "gradient_covariance",
    "gradient_gram",
    "gradient_norms",
    "greedy_action_churn",
    "held_out_accuracy",
    "hessian_eigenvalues",
    "hessian_vector_product",
    "hidden_layers",
    "inactive_fraction",
    "inactive_units",
    "linearized_fraction",
    "linearized_units",
    "mean_abs_weight",
    "negative_share",
    "ntk",
    "ntk_statistics",
    "pca_rank",
    "per_example_gradients",
    "policy_churn",
    "pooled_fraction",
    "preactivation_statistics",
    "q_statistics",
    "random_function_labels",
    "ranks",
    "singular_values",
    "snapshot",
    "srank",
    "stable_rank",
    "target_statistics",
    "td_error_statistics",
    "trainability",
    "unit_scores",
    "value_churn",
    "weight_change",
    "weight_norms",
]
