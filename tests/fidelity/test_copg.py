from tests.fidelity.offline import copg


def test_known_answers(all_reached):
    all_reached(copg)
