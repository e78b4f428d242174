from tests.fidelity.offline import rdpo


def test_known_answers(all_reached):
    all_reached(rdpo)
