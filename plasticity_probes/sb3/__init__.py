"""The probes in a Stable-Baselines3 run, by one line:

    model.learn(100_000, callback=PlasticityCallback(every=10_000))

The run stays as it is, to the bit. What is measured goes to SB3's own logger at the step it was measured at, under the
tags of `probe` and `prober`. Layers and parameters are called as in `named_modules()` of DQN's `q_net`, PPO's and
A2C's `policy`, and `actor` and `critic` of SAC, TD3 and DDPG; for the last three every tag ends in the network's name.
"""

from plasticity_probes.sb3.callback import PlasticityCallback

__all__ = ["PlasticityCallback"]
