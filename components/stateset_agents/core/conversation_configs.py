"""Conversations that ship with the package: one set of `ConversationEnvironment` keywords a domain.

They are for a first run and for examples; the retraining line reads its own scenarios from files.
"""

from __future__ import annotations

from typing import Any

CONVERSATION_CONFIGS: dict[str, dict[str, Any]] = {
    "customer_service": {
        "max_turns": 10,
        "randomize_scenarios": True,
        "scenarios": [
            {
                "id": "late_parcel",
                "topic": "customer_service",
                "context": (
                    "You work for an online shop. Standard delivery takes 3 to 5 working days. A "
                    "parcel is treated as lost after 10 working days; the customer then chooses "
                    "between a replacement and a refund. Ask for the order number before you look "
                    "anything up."
                ),
                "user_responses": [
                    "My parcel should have been here on Monday. Where is it?",
                    "The order number is 48213, I paid for standard delivery.",
                    "And if it never turns up, do I just lose the money?",
                    "Okay. I'll give it until Friday then.",
                ],
            },
            {
                "id": "shirt_does_not_fit",
                "topic": "customer_service",
                "context": (
                    "You work for an online clothes shop. Unworn clothes can be sent back within "
                    "30 days. Exchanges are free, the return label is in the customer's account. "
                    "Sale items can be exchanged, but not refunded."
                ),
                "user_responses": [
                    "hi, the linen shirt I got is way too tight",
                    "I'd like the same one in L. It was in the sale, is that a problem?",
                    "Where do I find the label?",
                ],
            },
            {
                "id": "charged_twice",
                "topic": "customer_service",
                "context": (
                    "You work for an online shop. Two charges of one order are usually a "
                    "reservation by the bank, which disappears within 3 working days. If both are "
                    "booked, the billing team refunds one within 5 working days; it needs the "
                    "order number. Never ask for a card number."
                ),
                "user_responses": [
                    "You have taken 59.90 from my card TWICE. This is outrageous.",
                    "Both say booked, not pending. Do you need my card number?",
                    "Order 77120. How long will this take?",
                ],
            },
        ],
    },
    "technical_support": {
        "max_turns": 12,
        "randomize_scenarios": True,
        "scenarios": [
            {
                "id": "app_closes_at_login",
                "topic": "technical_support",
                "context": (
                    "You support a budgeting app. Version 4.1 closes at login on phones that have "
                    "not been restarted since the update; 4.1.2 repairs it. Reinstalling keeps "
                    "data only when cloud backup is on."
                ),
                "user_responses": [
                    "The app shuts down the second I type my password.",
                    "Settings say 4.1, on an Android phone.",
                    "Should I delete it and install it again?",
                    "Cloud backup? No idea. How can I tell?",
                ],
            },
            {
                "id": "printer_offline",
                "topic": "technical_support",
                "context": (
                    "You support home printers. A printer that shows as offline has most often "
                    "changed networks: the network light blinks. Holding the wireless button for "
                    "five seconds starts pairing. The printers use 2.4 GHz networks only."
                ),
                "user_responses": [
                    "Printer says offline since we got the new router.",
                    "Yes there's a blue light, it keeps blinking.",
                    "I held the button, it found the network but cannot join.",
                    "Ours is called Home-5G, is that it?",
                ],
            },
            {
                "id": "slow_export",
                "topic": "technical_support",
                "context": (
                    "You support a reporting tool. Exports of more than 100,000 rows run in the "
                    "background and a link is mailed when they are done. Filters are applied "
                    "before the export. Failed exports have a reference that starts with EX."
                ),
                "user_responses": [
                    "Exporting last year's sales has been spinning for twenty minutes.",
                    "About 400k rows. I need it for a meeting at three!",
                    "I only really need the northern region, to be honest.",
                ],
            },
        ],
    },
    "sales": {
        "max_turns": 10,
        "randomize_scenarios": True,
        "scenarios": [
            {
                "id": "laptop_for_a_student",
                "topic": "sales",
                "context": (
                    "You advise customers of a computer shop. The Lumen 13 costs 749, weighs 1.2 "
                    "kg and has no graphics card; the Lumen 15 Pro costs 1,199 and has one. "
                    "Students get 10 percent off with proof. Recommend what fits, not what costs "
                    "most."
                ),
                "user_responses": [
                    "I start university in autumn and need a laptop. Any ideas?",
                    "Mostly writing and a bit of programming, and I carry it around all day.",
                    "My budget is 700, so that's too much I guess.",
                    "Good to know. What would I have to show?",
                ],
            },
            {
                "id": "team_plan_or_single",
                "topic": "sales",
                "context": (
                    "You sell a project planner. Single seats cost 12 a month, the team plan 45 a "
                    "month for up to five people. Plans change at any time, the rest of the month "
                    "is credited. There is a free trial of 14 days, no card needed."
                ),
                "user_responses": [
                    "What's the difference between the single and the team plan?",
                    "We're three people now, maybe five by summer.",
                    "Can we try it first without giving a card?",
                ],
            },
            {
                "id": "just_looking",
                "topic": "sales",
                "context": (
                    "You advise visitors of an outdoor shop. Boots are measured in the store "
                    "only; online there is free return for 60 days. Do not press anyone to buy."
                ),
                "user_responses": [
                    "Just having a look, thanks.",
                    "Well, actually, are the Ridge boots any good for wet trails?",
                    "I never know my size in boots when I buy online.",
                ],
            },
        ],
    },
}
