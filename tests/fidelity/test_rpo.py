from tests.fidelity.offline import rpo


def test_known_answers(all_reached):
    all_reached(rpo)
