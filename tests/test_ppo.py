"""PPO: GAE and the clipped surrogate by hand, what is stored and sent, the policy gradient, and learning."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

import ppo

TINY = dict(
    num_envs=4,
    num_steps=16,
    hidden_size=16,
    learning_rate=2e-2,
    num_minibatches=2,
    update_epochs=4,
    reward_scale=1.0,
    total_timesteps=1_280,
)
PROBE = {**TINY, "num_envs": 8}


def quiet(row):
    """Report to nobody."""


def advantages_written_out(reward, value, next_value, terminated, done, gamma, gae_lambda):
    """sum_k (gamma lambda)^k delta_{t+k} to the end of the episode or of the rollout, in float64."""
    T, N = reward.shape
    advantage = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for k in range(T - t):
                bootstrap = 0.0 if terminated[t + k, n] else next_value[t + k, n]
                delta = reward[t + k, n] + gamma * bootstrap - value[t + k, n]
                advantage[t, n] += (gamma * gae_lambda) ** k * delta
                if done[t + k, n]:
                    break
    return advantage


@pytest.mark.parametrize("gamma, gae_lambda", [(0.99, 0.95), (0.9, 1.0), (0.5, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["never", "terminated", "truncated", "both"])
def test_gae_is_the_sum_written_out(gamma, gae_lambda, kind):
    rng = np.random.default_rng(3)
    T, N = 9, 5
    reward, value, next_value = rng.normal(size=(3, T, N))
    terminated = (rng.random((T, N)) < 0.3) & (kind in ("terminated", "both"))
    truncated = (rng.random((T, N)) < 0.3) & (kind in ("truncated", "both"))
    arrays = reward, value, next_value, terminated, terminated | truncated
    tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    result = ppo.gae(*tensors, gamma, gae_lambda)
    assert result.shape == (T, N)
    assert result.numpy() == pytest.approx(advantages_written_out(*arrays, gamma, gae_lambda), abs=1e-4)
    assert all(
        (tensor == torch.tensor(array, dtype=torch.float32)).all() for tensor, array in zip(tensors, arrays)
    )


def test_gae_of_one_step_by_hand():
    one = torch.ones(1, 1)
    for terminated, done, expected in (
        (0.0, 0.0, 1 + 0.5 * 3 - 2),
        (1.0, 1.0, 1 - 2),
        (0.0, 1.0, 1 + 0.5 * 3 - 2),
    ):
        result = ppo.gae(one, 2 * one, 3 * one, terminated * one, done * one, 0.5, 0.9)
        assert result.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [  # slope: d loss / d log_prob = -ratio * advantage where the unclipped side is the minimum, else 0
        (1.5, 2.0, -1.2 * 2.0, 0.0),  # already too likely: no more gain
        (0.5, 2.0, -0.5 * 2.0, -0.5 * 2.0),  # good and unlikely: make it likelier
        (1.5, -2.0, 1.5 * 2.0, 1.5 * 2.0),  # bad and likely: make it less so
        (0.5, -2.0, 0.8 * 2.0, 0.0),  # already too unlikely
        (1.1, 2.0, -1.1 * 2.0, -1.1 * 2.0),
        (0.9, -2.0, 0.9 * 2.0, 0.9 * 2.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, slope):
    log_prob = torch.tensor([np.log(ratio) - 1.0], dtype=torch.float32, requires_grad=True)
    result = ppo.clipped_surrogate(log_prob, torch.tensor([-1.0]), torch.tensor([advantage]), 0.2)
    result.backward()
    assert result.shape == () and result.item() == pytest.approx(loss, rel=1e-5)
    assert log_prob.grad.item() == pytest.approx(slope, rel=1e-5)


def test_clipped_surrogate_is_a_mean():
    log_prob, old, advantage = torch.randn(3, 50).double()
    apart = [
        ppo.clipped_surrogate(*(x[i : i + 1] for x in (log_prob, old, advantage)), 0.2) for i in range(50)
    ]
    together = ppo.clipped_surrogate(log_prob, old, advantage, 0.2)
    assert together.item() == pytest.approx(torch.stack(apart).mean().item())


def test_log_probability_and_entropy():
    obs = torch.randn(7, 4).double()
    discrete = ppo.ActorCritic(ppo.Config()).double()
    discrete.actor[-1].weight.data *= 100
    action = torch.randint(2, (7,))
    reference = Categorical(logits=discrete.actor(obs))
    assert torch.allclose(discrete.policy(obs).log_prob(action), reference.log_prob(action))
    assert torch.allclose(discrete.policy(obs).entropy(), reference.entropy())
    gaussian = ppo.ActorCritic(ppo.Config("Pendulum-v1")).double()
    gaussian.log_std.data.fill_(-0.7)
    obs, action = torch.randn(7, 3).double(), 3 * torch.randn(7, 1).double()
    reference = Normal(gaussian.actor(obs), gaussian.log_std.exp())
    log_prob = gaussian.policy(obs).log_prob(action)
    assert log_prob.shape == (7,) and torch.allclose(log_prob, reference.log_prob(action).sum(-1))
    assert torch.allclose(gaussian.policy(obs).entropy(), reference.entropy().sum(-1))


def test_act_is_greedy_and_inside_the_action_space():
    agent = ppo.ActorCritic(ppo.Config())
    obs = np.random.default_rng(0).normal(size=(32, 4))
    expected = agent.actor(torch.tensor(obs, dtype=torch.float32)).argmax(1).numpy()
    action = agent.act(obs)
    assert action.dtype == np.int64 and (action == expected).all()
    agent = ppo.ActorCritic(ppo.Config("probes:WideBox-v0"))
    agent.actor[-1].bias.data.fill_(100.0)
    action = agent.act(obs[:, :2])
    assert action.dtype == np.float32 and action.shape == (32, 1) and (action == 6).all()


def recorded(monkeypatch, config):
    """Train on `config`; every call of `policy` with gradients: (obs, actions, log-probabilities)."""
    calls, sent, make_vec, surrogate = [], [], gym.make_vec, ppo.clipped_surrogate

    class Recorder(gym.vector.VectorWrapper):
        def step(self, action):
            sent.append(action.copy())
            return super().step(action)

    def spy(log_prob, old_log_prob, advantage, clip_coef):
        calls.append((log_prob.detach(), old_log_prob, advantage))
        return surrogate(log_prob, old_log_prob, advantage, clip_coef)

    monkeypatch.setattr(gym, "make_vec", lambda *args, **kwargs: Recorder(make_vec(*args, **kwargs)))
    monkeypatch.setattr(ppo, "clipped_surrogate", spy)
    ppo.train(config, report=quiet)
    return calls, np.array(sent)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "probes:WideBox-v0"])
def test_ratio_is_one_on_the_first_minibatch(monkeypatch, env_id):
    calls, _ = recorded(monkeypatch, ppo.Config(env_id, **{**TINY, "total_timesteps": 192}))
    assert len(calls) == 3 * TINY["update_epochs"] * TINY["num_minibatches"]
    for i, (log_prob, old_log_prob, advantage) in enumerate(calls):
        assert log_prob.shape == old_log_prob.shape == advantage.shape
        assert advantage.mean().abs() < 1e-5 and advantage.std(correction=0) == pytest.approx(1, abs=1e-3)
        if i % (TINY["update_epochs"] * TINY["num_minibatches"]) == 0:
            assert torch.allclose(log_prob, old_log_prob, atol=1e-5), i
    assert any(not torch.allclose(log_prob, old, atol=1e-3) for log_prob, old, _ in calls)


def test_raw_action_is_stored_and_the_clipped_one_sent(monkeypatch):
    seen, policy = [], ppo.ActorCritic.policy

    class Spy:
        def __init__(self, distribution):
            self.distribution = distribution

        def __getattr__(self, name):
            return getattr(self.distribution, name)

        def log_prob(self, action):
            seen.append(action)
            return self.distribution.log_prob(action)

    monkeypatch.setattr(ppo.ActorCritic, "policy", lambda self, obs: Spy(policy(self, obs)))
    config = ppo.Config("probes:ByActionBox-v0", **{**TINY, "total_timesteps": 64})
    _, sent = recorded(monkeypatch, config)
    raw = seen[0].numpy()  # (T, N, 1), the whole rollout
    assert raw.shape == (16, 4, 1) and (np.abs(raw) > 1).any()
    assert (sent == np.clip(raw, -1, 1)).all() and np.abs(sent).max() == 1


def test_what_is_learned_from(monkeypatch):
    """Chain: 3 steps an episode, terminated in even and truncated in odd ones; then a reset."""
    seen, gae = [], ppo.gae

    def spy(*args):
        seen.append(([x.clone() if torch.is_tensor(x) else x for x in args], gae(*args)))
        return seen[-1][1]

    monkeypatch.setattr(ppo, "gae", spy)
    values = []
    critic = ppo.nn.Linear(2, 1)
    critic.weight.data, critic.bias.data = torch.tensor([[1.0, 10.0]]), torch.zeros(1)
    agent = ppo.ActorCritic(ppo.Config("probes:Alternating-v0"))
    agent.critic = critic
    config = ppo.Config(
        "probes:Alternating-v0", num_envs=2, num_steps=10, total_timesteps=20, reward_scale=0.5
    )
    calls = []
    monkeypatch.setattr(ppo, "clipped_surrogate", lambda *args: calls.append(args) or args[0].mean())
    ppo.train(config, report=values.append, agent=agent)
    (reward, value, next_value, terminated, done, *_), advantage = seen[0]
    step = torch.tensor(
        [0, 1, 2, 3] * 2 + [0, 1]
    )  # the observation's step number; 3 is an episode's last one
    episode = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
    assert (value == (step + 10 * episode)[:, None]).all()
    assert reward.dtype == value.dtype == advantage.dtype == torch.float32
    stored = step < 3
    assert (
        next_value[stored] == (step + 1 + 10 * episode)[stored][:, None]
    ).all()  # the true last observation
    assert (reward[stored] == 0.5 * (step == 2)[stored][:, None]).all()
    assert (done[stored].bool() == (step == 2)[stored][:, None]).all()
    assert (terminated[stored].bool() == ((step == 2) & (episode % 2 == 0))[stored][:, None]).all()
    assert sum(len(log_prob) for log_prob, *_ in calls) == config.update_epochs * int(stored.sum()) * 2
    expected = advantages_written_out(
        reward, value, next_value, terminated, done, config.gamma, config.gae_lambda
    )
    assert advantage[stored].numpy() == pytest.approx(expected[stored], rel=1e-4)


def test_gradient_is_the_plain_policy_gradient(monkeypatch):
    """One epoch, one minibatch, lambda 1, no clipping: E[sum_t grad log pi(a|s) (reward to go - V(s))]."""
    batch, gradients, gae = {}, [], ppo.gae

    def spy(*args):
        batch["gae"] = [x.clone() if torch.is_tensor(x) else x for x in args]
        return gae(*args)

    def step(self, closure=None):
        gradients.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    monkeypatch.setattr(ppo, "gae", spy)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    config = ppo.Config(
        "probes:TwoAhead-v0", num_envs=4, num_steps=15,
        total_timesteps=60, update_epochs=1, num_minibatches=1,
        gae_lambda=1.0, gamma=0.9, clip_coef=1e6, vf_coef=0.0, max_grad_norm=1e6, reward_scale=1.0, seed=4,
    )  # fmt: skip
    agent = ppo.ActorCritic(config)
    actions, act = [], ppo.ActorCritic.act
    monkeypatch.setattr(
        ppo.ActorCritic,
        "act",
        lambda self, obs, **how: actions.append((obs.copy(), act(self, obs, **how))) or actions[-1][1],
    )
    ppo.train(config, report=quiet, agent=agent)
    reward, value = batch["gae"][0], batch["gae"][1]
    obs, action = (torch.tensor(np.array(x)) for x in zip(*actions))
    log_prob = agent.policy(obs).log_prob(action)
    stored = obs[..., 0] < 3  # 3 steps an episode, then a reset
    advantage = torch.zeros_like(reward)
    for t in range(15):
        to_go = sum(0.9**k * reward[t + k] for k in range(15 - t) if (t + k) // 4 == t // 4)
        if t // 4 == 3:  # the rollout ends inside the fourth episode, here with its end
            to_go = sum(0.9**k * reward[t + k] for k in range(15 - t))
        advantage[t] = to_go - value[t]
    advantage = (advantage - advantage[stored].mean()) / advantage[stored].std(correction=0)
    loss = -(log_prob * advantage)[stored].mean()
    expected = torch.autograd.grad(loss, list(agent.actor.parameters()))
    for ours, theirs in zip(gradients[0], expected):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert max(g.abs().max() for g in expected) > 1e-4


def test_minimalrl_settings_are_flags():
    flags = dict(
        num_steps=20, update_epochs=2, clip_coef=0.1, gae_lambda=0.95, gamma=0.98, learning_rate=5e-4
    )
    config = ppo.Config(num_envs=1, num_minibatches=1, total_timesteps=200, **flags)
    ppo.train(config, report=quiet)


@pytest.mark.parametrize("box", [False, True])
def test_probe_values(box):
    suffix = "Box" if box else ""
    for env_id, gamma, obs, expected in (
        (f"probes:Constant{suffix}-v0", 0.9, [[0, 1]], [1.0]),
        (f"probes:TwoAhead{suffix}-v0", 0.5, [[0, 1], [1, 1], [2, 1]], [0.25, 0.5, 1.0]),
        (f"probes:Terminated{suffix}-v0", 0.5, [[0, 1], [1, 1], [2, 1], [3, 1]], [1.875, 1.75, 1.5, 1.0]),
    ):
        agent = ppo.train(ppo.Config(env_id, **PROBE, gamma=gamma), report=quiet)
        with torch.no_grad():
            assert agent.critic(torch.tensor(obs).float()).squeeze(1).numpy() == pytest.approx(
                expected, abs=0.15
            )
    agent = ppo.train(ppo.Config(f"probes:Truncated{suffix}-v0", **PROBE, gamma=0.5), report=quiet)
    with torch.no_grad():
        assert agent.critic(torch.tensor([[3.0, 1.0]])).item() > 1.3  # without the bootstrap it would be 1


@pytest.mark.parametrize("env_id, best", [("probes:ByAction-v0", 1.0), ("probes:ByActionBox-v0", 0.0)])
def test_probe_reward_by_action(env_id, best):
    agent = ppo.train(ppo.Config(env_id, **PROBE), report=quiet)
    assert ppo.evaluate(agent, env_id, 5, seed=0) == pytest.approx(np.full(5, best), abs=0.02)


@pytest.mark.learning
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_solves_cartpole(seed):
    config = ppo.Config(seed=seed)
    agent = ppo.train(config, report=quiet)
    assert ppo.evaluate(agent, config.env_id, 100, seed + 10_000).mean() >= 475


@pytest.mark.parametrize("suffix", ["", "Box"])
def test_entropy_bonus_keeps_the_policy_random(suffix):
    entropy = []
    for ent_coef in (0.0, 1.0):
        rows = []
        ppo.train(ppo.Config(f"probes:ByAction{suffix}-v0", **TINY, ent_coef=ent_coef), report=rows.append)
        entropy.append(rows[-1]["entropy"])
    assert entropy[1] > entropy[0] + 0.2
