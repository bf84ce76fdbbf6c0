"""Shapley's definition: every coalition of players, answered by a library's own predict function."""

import math

import numpy as np
import pandas as pd


def shapley(answer, rows, background, players):
    """Values `[rows, outputs, players]` and base `[outputs]`, the worth of a coalition being the mean answer over background rows
    that have the explained row's columns where those are of its members.

    `answer` takes a frame and gives `[N]` or `[N, outputs]`; `players` has the player's number of every column.
    """
    count = max(players) + 1
    coalitions = np.arange(2**count)
    is_member = (coalitions[:, None] >> np.arange(count)) & 1 == 1
    size = is_member.sum(1)
    values = []
    for _, row in rows.iterrows():
        mixed = {
            column: np.where(is_member[:, [player]], np.array(row[column], object), background[column].to_numpy(object)).ravel()
            for column, player in zip(rows.columns, players)
        }
        mixed = pd.DataFrame(mixed).astype(rows.dtypes.to_dict())
        worth = np.asarray(answer(mixed), float).reshape(len(coalitions), len(background), -1).mean(1)
        of_row = []
        for player in range(count):
            without = coalitions[~is_member[:, player]]
            weight = np.array([1 / (count * math.comb(count - 1, others)) for others in size[without]])
            of_row.append(weight @ (worth[without + 2**player] - worth[without]))
        values.append(np.array(of_row).T)
    return np.array(values), worth[0]
