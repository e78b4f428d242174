from tests.fidelity.rounds import spo


def test_known_answers(all_reached):
    all_reached(spo, rounds=4000)
