"""Mood, memory, sleep."""

from __future__ import annotations

from cehrxgpt.simulate.populations.full.entry import Done, Entry, acute, chronic

MIND: tuple[Entry, ...] = (
    chronic(
        "depression", "Depression", {440383: "Depression", 4152280: "Major depression", 4282096: "Major depression, one episode"},
        {"women": {18: 0.032, 30: 0.026, 50: 0.018, 75: 0.010}, "men": {18: 0.016, 30: 0.013, 50: 0.010, 75: 0.006}},
        since={"birth": (1.8, 120.0), "infarction": (1.2, 150.0), "stroke": (1.3, 150.0), "cancer": (1.4, 200.0), "discharge": (0.6, 60.0)},
        noted=0.6, again=(0.35, 0.12, 0.4), brought={18: 0.10, 30: 0.13, 50: 0.14, 75: 0.10}, brought_men=0.55, seen_every_days=200.0,
        follows={"phq9": 0.35}, tests={"phq9": 0.6},
        workup=(Done(concept=4064377, name="Screening for depression", chance=0.4),
                Done(concept=4043071, name="Cognitive and behavioural therapy", chance=0.2)),
        raises={"anxiety": 0.9, "emergency": 0.3, "clinic": 0.25, "death": 0.1, "self_harm": 1.8, "infarction": 0.1},
    ),
    chronic(
        "anxiety", "Anxiety", {442077: "Anxiety"}, {"women": {18: 0.028, 40: 0.018, 75: 0.008}, "men": {18: 0.014, 40: 0.009, 75: 0.004}}, noted=0.6,
        again=(0.28, 0.12, 0.2), brought={18: 0.11, 50: 0.12, 75: 0.08}, brought_men=0.55, follows={"gad7": 0.2},
        raises={"depression": 0.6, "clinic": 0.2},
    ),
    chronic(
        "insomnia", "Insomnia", {436962: "Insomnia"}, {"all": {18: 0.008, 50: 0.014, 80: 0.014}}, since={"depression": (0.8, 200.0)}, noted=0.6,
        brought={18: 0.03, 60: 0.09},
    ),
    chronic(
        "dementia", "Dementia", {4182210: "Dementia", 378419: "Alzheimer's disease"},
        {"all": {55: 0.0003, 65: 0.0030, 75: 0.012, 85: 0.042, 90: 0.065}}, since={"stroke": (0.8, 300.0)}, noted=0.6, again=(0.45, 0.4, 0.8),
        brought={60: 0.003, 70: 0.02, 80: 0.09, 90: 0.24}, workup=(Done(concept=44784284, name="MRI of the brain", chance=0.3),),
        raises={"death": 0.75, "pneumonia": 0.5, "hip_fracture": 0.6, "fall": 0.5, "urinary_infection": 0.3},
    ),
    acute(
        "self_harm", "Attempt to take one's life", {444362: "Poisoned oneself", 4303690: "Harmed oneself"},
        {"all": {18: 0.0018, 35: 0.001, 60: 0.0004}}, visit=(0.0, 0.45, 0.55), stay_days=3.5, intensive=0.1,
        since={"self_harm": (2.0, 200.0), "depression": (1.2, 150.0)},
        workup=(Done(concept=4021192, name="Weighing the risk of suicide", chance=0.8),),
    ),
    chronic(
        "alcohol", "Alcohol dependence", {4218106: "Alcohol dependence"},
        {"women": {18: 0.002, 50: 0.0015, 75: 0.0004}, "men": {18: 0.004, 50: 0.004, 75: 0.001}}, noted=0.4, brought={18: 0.01, 45: 0.035, 75: 0.02},
        brought_men=2.2, again=(0.12, 0.2, 0.4), workup=(Done(concept=4211325, name="Advice on alcohol", chance=0.4),),
        raises={"death": 0.5, "gi_bleed": 0.7, "injury": 0.4, "pancreatitis": 1.5},
    ),
    chronic(
        "migraine", "Migraine", {318736: "Migraine"}, {"women": {18: 0.012, 45: 0.007, 75: 0.001}, "men": {18: 0.004, 45: 0.002, 75: 0.0005}},
        brought={18: 0.08, 45: 0.10, 75: 0.04}, brought_men=0.35, again=(0.15, 0.05, 0.1),
    ),
    chronic(
        "epilepsy", "Epilepsy", {380378: "Epilepsy"}, {"all": {18: 0.0005, 60: 0.0007, 85: 0.0018}}, since={"stroke": (1.8, 300.0)},
        visit=(0.3, 0.5, 0.2), brought={18: 0.01}, again=(0.4, 0.3, 0.6), tests={"metabolic": 0.5},
        workup=(Done(concept=4181917, name="Brain waves", chance=0.6),),
    ),
)  # fmt: skip
