"""A profile laid on nodes that exist: which sites there are, and what their limits and notes say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from inventory_fixtures import VERSIONS, raw, slurm, slurm_with_qos

from fullft_cluster.config import Config, ResourcesConfig, SlurmConfig
from fullft_cluster.errors import UsageError
from fullft_cluster.hardware import Cluster, load_cluster
from fullft_cluster.inventory import Access, Inventory, Qos, Site, sites
from fullft_cluster.inventory.features import has_features
from fullft_cluster.inventory.reading import from_file, from_slurm

A100 = load_cluster("a100-80gb")


def on(inventory: Inventory, profile: Cluster = A100, *, chosen: bool = False, **slurm_options: Any) -> list[Site]:
    return sites(inventory, profile, Config(slurm=SlurmConfig(**slurm_options)), chosen=chosen)


def problem(inventory: Inventory, profile: Cluster = A100, *, chosen: bool = False, **slurm_options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        on(inventory, profile, chosen=chosen, **slurm_options)
    return str(caught.value)


def lines(
    *nodes: str, partitions: str = "PartitionName=gpu Default=YES MaxTime=UNLIMITED State=UP TotalNodes=1"
) -> str:
    """scontrol's text of a few nodes: `NAME STATE GRES RealMemory [FEATURES]`, all in partition gpu."""
    text = []
    for node in nodes:
        name, state, gres, memory, *features = node.split()
        text.append(
            f"NodeName={name} CPUTot=64 ActiveFeatures={features[0] if features else '(null)'} Gres={gres} "
            f"RealMemory={memory} State={state} Partitions=gpu"
        )
    return "\n".join([*text, partitions])


# --- which sites


@pytest.mark.parametrize("version", VERSIONS)
def test_the_default_partition_comes_first_with_what_it_has(version: str) -> None:
    first = on(slurm(version))[0]
    cluster = first.cluster
    assert (first.partition, first.time_limit_seconds, first.nodes_idle) == ("gpu", 2 * 86400, 0)
    # dgx01 and dgx02 of the four are up; they lie in two pools, as one of them is in more partitions.
    assert (cluster.gpu, cluster.gpus_per_node, cluster.max_nodes, cluster.cpus_per_node) == ("a100-80gb", 8, 2, 248)
    assert cluster.slurm_gpu_type == "a100"
    assert cluster.host_memory_gib == pytest.approx(0.97 * (2051000 - 16384) / 1024, abs=0.1)
    assert "2 of 4 nodes up: dgx[03-04],dgx01,dgx02" in first.notes
    assert "partition gpu: at most 2d 00h an attempt" in first.notes


def test_nodes_that_are_in_no_default_partition_are_reached_by_the_longest() -> None:
    cloud = next(site for site in on(slurm()) if site.partition == "cloud")
    assert (cloud.cluster.max_nodes, cloud.time_limit_seconds, cloud.nodes_idle) == (10, 3 * 86400, 10)


def test_a_given_partition_is_kept_to() -> None:
    found = on(slurm(), partition="long", account="physics", qos="normal")
    assert {site.partition for site in found} == {"long"}
    assert [(site.cluster.gpus_per_node, site.cluster.max_nodes) for site in found] == [(8, 2), (4, 1)]
    assert found[0].time_limit_seconds == 7 * 86400


def test_several_given_partitions_are_passed_on_with_the_shortest_limit() -> None:
    first = on(slurm(), partition="gpu,long", account="physics", qos="normal")[0]
    assert (first.partition, first.time_limit_seconds) == ("gpu,long", 2 * 86400)


def test_another_partition_is_a_site_of_its_own_where_it_has_more_nodes() -> None:
    partitions = (
        "PartitionName=few Default=YES MaxTime=1:00:00 State=UP TotalNodes=1\n"
        "PartitionName=many MaxTime=2:00:00 State=UP TotalNodes=2\n"
        "PartitionName=same MaxTime=30 State=UP TotalNodes=2"
    )
    text = lines("n1 IDLE gpu:h100:8 1000000", "n2 IDLE gpu:h100:8 1000000", partitions=partitions)
    text = text.replace("Partitions=gpu", "Partitions=few,many,same", 1).replace(
        "Partitions=gpu", "Partitions=many,same"
    )
    found = on(from_slurm(text))
    assert [(site.partition, site.cluster.max_nodes) for site in found] == [("few", 1), ("many", 2)]


def test_the_profile_of_another_gpu_brings_its_own_figures() -> None:
    hopper = on(from_slurm(lines("n1 IDLE gpu:nvidia_h100_80gb_hbm3:8 1500000")))[0].cluster
    shipped = load_cluster("h100-80gb")
    assert (hopper.gpu, hopper.slurm_gpu_type) == ("h100-80gb", "nvidia_h100_80gb_hbm3")
    assert hopper.intra_node_gb_per_second == shipped.intra_node_gb_per_second
    assert hopper.intra_node_gb_per_second != A100.intra_node_gb_per_second


def test_a_chosen_profile_wants_its_gpu() -> None:
    mine = msgspec.structs.replace(load_cluster("a100-40gb"), name="mine", env={"A": "b"}, max_nodes=3)
    found = on(slurm(), mine, chosen=True)
    assert {site.cluster.gpu for site in found} == {"a100-40gb"}
    # not the dgx nodes, whose feature says 80 GB; the cloud's ten are bounded by the profile
    assert {site.cluster.gpus_per_node: site.cluster.max_nodes for site in found} == {4: 1, 8: 3, 2: 1}
    assert all(site.cluster.env == {"A": "b"} and site.cluster.name == "mine" for site in found)


def test_a_chosen_profile_whose_gpu_is_not_there() -> None:
    h200 = msgspec.structs.replace(A100, name="h200", gpu="h200-141gb")
    text = problem(slurm(), h200, chosen=True, partition="gpu")
    assert "no node with a h200-141gb that we know is up and open to you" in text
    assert "dgx" in text and "a100-80gb" in text


def test_an_a100_of_unknown_memory_is_the_profiles_and_says_so() -> None:
    inventory = from_slurm(lines("n1 IDLE gpu:a100:8 1000000"))
    by_default, chosen = on(inventory)[0], on(inventory, load_cluster("a100-40gb"), chosen=True)[0]
    assert (by_default.cluster.gpu, chosen.cluster.gpu) == ("a100-80gb", "a100-40gb")
    assert "a100 is taken for a100-80gb, as in the default profile a100-80gb; for a100-40gb" in by_default.notes[0]
    assert "a100 is taken for a100-40gb, as the profile a100-40gb says" in chosen.notes[0]


def test_an_a100_of_unknown_memory_beside_another_profile_is_the_smaller_one() -> None:
    inventory = from_slurm(lines("n1 IDLE gpu:a100:8 1000000"))
    site = on(inventory, load_cluster("h100-80gb"))[0]
    assert site.cluster.gpu == "a100-40gb"
    assert "the one with least memory; for a100-80gb" in site.notes[0]


def test_a_type_that_we_do_not_know_is_what_the_users_profile_says() -> None:
    inventory = from_slurm(lines("n1 IDLE gpu:big:8 1000000"))
    assert "big is no GPU in configs/gpus.yaml" in problem(inventory)
    mine = msgspec.structs.replace(A100, name="mine", slurm_gpu_type="big")
    site = on(inventory, mine, chosen=True)[0]
    assert (site.cluster.gpu, site.cluster.slurm_gpu_type) == ("a100-80gb", "big")


def test_gpus_without_a_type_are_asked_for_by_count_alone() -> None:
    inventory = from_slurm(lines("n1 IDLE gpu:4 1000000"))
    assert "does not say the type" in problem(inventory)
    site = on(inventory, A100, chosen=True)[0]
    assert (site.cluster.gpu, site.cluster.gpus_per_node, site.cluster.slurm_gpu_type) == ("a100-80gb", 4, None)


def test_a_cluster_of_cpus_is_planned_by_a_chosen_profile() -> None:
    cpus = msgspec.structs.replace(load_cluster("local"), name="cpus", max_nodes=100)
    site = on(slurm(), cpus, chosen=True, partition="cpu")[0]
    assert (site.cluster.gpu, site.cluster.gpus_per_node, site.cluster.max_nodes) == ("cpu", 2, 2)
    assert (site.cluster.cpus_per_node, site.cluster.slurm_gpu_type) == (128, None)


# --- sizes


def test_nodes_of_two_sizes_are_two_sites_the_smaller_with_all_nodes() -> None:
    found = on(
        from_slurm(lines("n1 IDLE gpu:h100:8 1000000", "n2 IDLE gpu:h100:8 2000000", "n3 MIXED gpu:h100:8 1000000"))
    )
    assert [(site.cluster.max_nodes, round(site.cluster.host_memory_gib)) for site in found] == [(3, 947), (1, 1894)]


def test_a_few_megabytes_do_not_make_another_size() -> None:
    nodes = [f"n{number} IDLE gpu:h100:8 {1031000 + 37 * number}" for number in range(50)]
    inventory = from_slurm(lines(*nodes))
    assert len(inventory.pools) == 1
    assert inventory.pools[0].host_memory_gib == pytest.approx(1031000 / 1024, abs=0.01)


# --- limits


def test_max_nodes_of_the_partition_and_of_its_qos() -> None:
    nodes = [f"n{number} IDLE gpu:h100:8 1000000" for number in range(9)]
    limited = "PartitionName=gpu Default=YES MaxTime=1-00:00:00 MaxNodes=5 QoS=q State=UP TotalNodes=9"
    text = lines(*nodes, partitions=limited)
    assert on(from_slurm(text))[0].cluster.max_nodes == 5
    some = on(from_slurm(text, qos=(Qos(name="q", gpus={"": 30}, max_wall_seconds=3600),)))[0]
    assert (some.cluster.max_nodes, some.time_limit_seconds) == (3, 3600)  # 30 GPUs are three whole nodes
    assert "QOS q: at most 30 GPUs a job" in some.notes
    typed = on(from_slurm(text, qos=(Qos(name="q", gpus={"h100": 16, "a100": 8}),)))[0]
    assert typed.cluster.max_nodes == 2


def test_a_limit_below_one_node_leaves_a_share_of_it() -> None:
    text = lines("n1 IDLE gpu:h100:8 1000000").replace("State=UP", "QoS=q State=UP")
    site = on(from_slurm(text, qos=(Qos(name="q", gpus={"": 2}),)))[0]
    assert (site.cluster.gpus_per_node, site.cluster.max_nodes, site.cluster.cpus_per_node) == (2, 1, 16)
    assert site.cluster.host_memory_gib == pytest.approx(0.97 * 1000000 / 1024 / 4, abs=0.1)


def test_a_partition_that_gives_only_a_share_of_its_nodes() -> None:
    site = on(slurm(), partition="debug")[0]
    assert (site.cluster.cpus_per_node, site.cluster.max_nodes) == (32, 1)
    assert site.cluster.host_memory_gib == pytest.approx(0.97 * 200000 / 1024, abs=0.1)


def test_a_partition_with_the_same_nodes_for_longer_is_mentioned() -> None:
    hint = "partition long has these nodes for 7d 00h: give --partition long for fewer requeues"
    assert hint in on(slurm())[0].notes
    assert hint not in on(slurm(), partition="gpu")[0].notes


def test_the_jobs_own_qos_counts_too() -> None:
    found = on(slurm_with_qos(), partition="long", account="physics", qos="long-jobs")
    assert found[0].time_limit_seconds == 7 * 86400
    assert on(slurm_with_qos(), partition="gpu")[0].cluster.max_nodes == 2


# --- partitions that are not for this job


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "hoper"}, "slurm.partition: no partition 'hoper'. Did you mean 'hopper'?"),
        ({"partition": "cpu"}, "partition cpu has no GPUs. Partitions with GPUs: cloud, debug, gpu, hopper, long."),
        ({"partition": "closed"}, "partition closed takes no jobs now"),
        ({"partition": "all"}, "partition all is for root's jobs only"),
        ({"partition": "long", "account": "geology"}, "takes only accounts physics, biology"),
        ({"partition": "hopper", "account": "chemistry"}, "takes no account chemistry"),
        ({"partition": "long", "qos": "scavenger"}, "takes only QOS long-jobs, normal"),
        ({"qos": "long-job"}, "slurm.qos: no QOS 'long-job'. Did you mean 'long-jobs'?"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    assert words in problem(slurm_with_qos(), **options)


def test_all_problems_at_once() -> None:
    text = problem(slurm_with_qos(), partition="cpu,hoper", qos="nrmal")
    assert len(text.splitlines()) == 3


def test_partitions_of_other_groups_and_accounts_are_passed_over() -> None:
    inventory = slurm_with_qos()
    for access in (Access(accounts=("chemistry",)), Access(qos=("scavenger",))):
        other = msgspec.structs.replace(inventory, access=access)
        assert "long" not in {site.partition for site in on(other)}
    text = lines("n1 IDLE gpu:h100:8 1000000").replace("State=UP", "AllowGroups=staff State=UP")
    assert on(from_slurm(text, access=Access(groups=("staff", "x"))))
    assert "no node of n1 is up in a partition that is open to you" in problem(
        from_slurm(text, access=Access(groups=("x",)))
    )


def test_a_partition_for_some_accounts_says_which() -> None:
    notes = on(slurm(), partition="long")[0].notes
    assert "partition long takes only jobs of physics or biology: give --account" in notes
    assert "partition long takes only jobs of QOS long-jobs or normal" in notes


# --- nodes


def test_reserved_nodes_are_for_jobs_that_name_a_reservation() -> None:
    assert "no node" in problem(slurm(), load_cluster("h100-80gb"), chosen=True, partition="hopper")
    site = on(slurm(), load_cluster("h100-80gb"), chosen=True, partition="hopper", reservation="course")[0]
    assert site.cluster.max_nodes == 1


def test_nothing_up() -> None:
    text = problem(from_slurm(lines("n1 DOWN gpu:h100:8 1000000", "n2 IDLE+DRAIN gpu:h100:8 1000000")))
    assert "no node of n[1-2] is up in a partition that is open to you" in text


def test_nodes_of_the_same_type_with_less_memory_are_kept_off() -> None:
    both = from_slurm(
        lines(
            "n1 IDLE gpu:a100:8 1000000 ib,a100_80gb,blue",
            "n2 IDLE gpu:a100:8 1000000 ib,a100_40gb",
            "n3 IDLE (null) 1000",
        )
    )
    site = on(both)[0]
    assert (site.cluster.gpu, site.cluster.max_nodes, site.constraint) == ("a100-80gb", 1, "a100_80gb")
    small = on(both, load_cluster("a100-40gb"), chosen=True)[0]
    assert (small.cluster.gpu, small.constraint) == ("a100-40gb", None)  # on more memory it runs as well
    assert on(both, constraint="a100_80gb")[0].constraint is None  # the user's own is enough
    assert [s.cluster.gpu for s in on(both, constraint="a100_40gb")] == ["a100-40gb"]
    unmarked = from_slurm(lines("n1 IDLE gpu:a100:8 1000000 a100_80gb", "n2 IDLE gpu:a100:8 1000000"))
    assert on(unmarked)[0].constraint == "a100_80gb"


@pytest.mark.parametrize(
    ("constraint", "met"),
    [
        (None, True),
        ("a", True),
        ("c", False),
        ("a&b", True),
        ("a&c", False),
        ("c|b", True),
        ("[x*2&y]", True),
        ("a,c", False),
    ],
)
def test_constraints(constraint: str | None, met: bool) -> None:
    assert has_features(("a", "b"), constraint) is met


def test_powered_down_nodes_that_slurm_hides_are_mentioned() -> None:
    text = lines("n1 IDLE gpu:h100:8 1000000").replace("TotalNodes=1", "TotalNodes=11")
    assert "partition gpu has 10 nodes more, hidden while powered down" in on(from_slurm(text))[0].notes


def test_nodes_without_a_word_on_partitions() -> None:
    inventory = from_file(raw("22.05", "sinfo.json"), "sinfo.json")
    site = on(inventory)[0]
    assert (site.partition, site.time_limit_seconds, site.limit_known) == (None, None, False)
    assert "the inventory does not say what the partitions allow" in site.notes
    assert on(inventory, partition="long")[0].partition == "long"
    assert "no partition 'lung'" in problem(inventory, partition="lung")


def test_what_the_user_says_of_resources_is_the_planners_business() -> None:
    config = Config(resources=ResourcesConfig(nodes=400))
    assert sites(slurm(), A100, config)[0].cluster.max_nodes == 2


def test_memory_that_slurm_does_not_know_is_the_profiles() -> None:
    """RealMemory is 1 where nobody configured it."""
    site = on(from_slurm(lines("n1 IDLE gpu:h200:8 1")))[0]
    assert site.cluster.host_memory_gib == load_cluster("h200-141gb").host_memory_gib
    assert any("memory of some of them is not said" in note for note in site.notes)


@pytest.mark.parametrize("limit", ["MaxNodes=0", "QoS=none"])
def test_a_partition_that_gives_nothing_is_passed_over(limit: str) -> None:
    text = lines("n1 IDLE gpu:h100:8 1000000").replace("State=UP", f"{limit} State=UP")
    assert "no node of n1 is up in a partition" in problem(from_slurm(text, qos=(Qos(name="none", gpus={"": 0}),)))


def test_the_notes_of_a_size_are_about_its_nodes() -> None:
    found = on(from_slurm(lines("n1 IDLE gpu:h200:8 1000000", "n2 IDLE gpu:h200:8 2000000")))
    assert ["2 of 2 nodes up: n2,n1" in found[0].notes or "2 of 2 nodes up: n1,n2" in found[0].notes] == [True]
    assert "1 of 1 node up: n2" in found[1].notes
