"""Customers of shops and services: orders, money, returns, complaints."""

from __future__ import annotations

from functools import partial

from stateset_agents.core.conversation_configs.scenario import scenario

_scenario = partial(scenario, "customer_service")

CUSTOMER_SERVICE = [
    _scenario(
        "late_parcel",
        "easy",
        "delivery",
        """You work for an online shop. Standard delivery takes 3 to 5 working days. A parcel is
        treated as lost after 10 working days; the customer then chooses between a replacement and
        a refund. Ask for the order number before you look anything up.""",
        "My parcel should have been here on Monday. Where is it?",
        "The order number is 48213, I paid for standard delivery.",
        "And if it never turns up, do I just lose the money?",
        "Okay. I'll give it until Friday then.",
    ),
    _scenario(
        "shirt_does_not_fit",
        "easy",
        "exchange",
        """You work for an online clothes shop. Unworn clothes can be sent back within 30 days.
        Exchanges are free, the return label is in the customer's account. Sale items can be
        exchanged, but not refunded.""",
        "hi, the linen shirt I got is way too tight",
        "I'd like the same one in L. It was in the sale, is that a problem?",
        "Where do I find the label?",
    ),
    _scenario(
        "charged_twice",
        "medium",
        "billing",
        """You work for an online shop. Two charges of one order are usually a reservation by the
        bank, which disappears within 3 working days. If both are booked, the billing team refunds
        one within 5 working days; it needs the order number. Never ask for a card number.""",
        "You have taken 59.90 from my card TWICE. This is outrageous.",
        "Both say booked, not pending. Do you need my card number?",
        "Order 77120. How long will this take?",
    ),
    _scenario(
        "broken_vase",
        "medium",
        "damaged",
        """You work for a shop for home decoration. For items that arrive broken the customer sends
        one photo to photos@harrow.example within 14 days, then gets a replacement or a refund.
        Broken glass must not be sent back.""",
        "The vase came in about forty pieces.",
        "It arrived yesterday. Do I post the pieces back to you?",
        "A photo is fine. Can I have the money instead of another one?",
        "Great, thanks for making it simple.",
    ),
    _scenario(
        "cancel_gym",
        "hard",
        "cancellation",
        """You work for a chain of gyms. Contracts run 12 months and then month by month, with one
        month's notice by email. A contract ends early with a doctor's note or when the member
        moves further than 30 km from any branch. You cannot waive fees.""",
        "cancel my membership. now.",
        "I signed in January, so what, I'm not coming anymore",
        "so you'd rather sue me than let me go? let me talk to someone who can just do it",
        "I am moving to the coast in May actually, does that count for anything",
        "fine. what do you need from me?",
    ),
    _scenario(
        "wrong_address",
        "medium",
        "order_change",
        """You work for an online bookshop. An address can be changed until the parcel is packed,
        usually two hours after the order. Later the carrier can be asked to hold the parcel at a
        pick-up point, free of charge. Confirm the new address back to the customer.""",
        "Hello! I've just noticed that I ordered to my OLD flat. Can that still be changed?",
        "It was this morning around nine, order B-20931, so five hours ago?",
        "A pick-up point would be perfect, there is one in Mill Lane.",
    ),
    _scenario(
        "refund_outside_the_window",
        "hard",
        "refund",
        """You work for an electronics shop. Returns within 30 days. After that only what is faulty
        is repaired or replaced, for two years. You may offer a 10 percent voucher once as a
        gesture, never a refund.""",
        "I want my money back for these headphones, they're uncomfortable.",
        "Bought them in spring. But I wore them twice!",
        "That's a ridiculous policy. Your competitor would take them.",
        "And what's that voucher worth to me if I never shop here again?",
    ),
    _scenario(
        "grateful_regular",
        "easy",
        "feedback",
        """You work for a flower delivery. Praise is passed on to the shop that made the bouquet, if
        the customer gives the order number. Do not sell anything in such a conversation.""",
        "I just wanted to say that the bouquet for my mum's 80th was wonderful. She cried!",
        "Oh, that would be lovely. It's F-3381.",
    ),
    _scenario(
        "account_of_a_late_husband",
        "hard",
        "account",
        """You work for a telephone company. When a customer has died the contract ends at once,
        without notice. A copy of the death certificate is sent to care@northline.example; the last
        bill is then settled without fees. Be brief and kind, do not ask for passwords.""",
        "My husband died three weeks ago and his phone bill keeps coming.",
        "I don't have his password. I don't know how any of this works.",
        "And until you've received it, do I have to pay?",
        "Thank you. I'll ask my daughter to send it.",
    ),
    _scenario(
        "stolen_at_the_door",
        "medium",
        "delivery",
        """You work for an online shop. If the carrier reports a delivery that the customer did not
        get, a search of 5 working days is opened; it needs the order number and whether neighbours
        were asked. After the search the customer gets a replacement.""",
        "tracking says delivered at 2pm. nothing here. cameras show nobody",
        "41877. and yes I've asked both neighbours and the kiosk",
        "five days?! it's a birthday present for saturday",
        "ok. write to me when the search is over",
    ),
    _scenario(
        "whose_fault_is_it",
        "hard",
        "complaint",
        """You work for a travel agency. Flight times are the airline's; rebooking within the same
        week is free when a flight moves by more than two hours. Hotels are rebooked free of charge
        with it. Compensation is claimed from the airline, not from you: promise nothing.""",
        "So the airline moved our flight by five hours and NOBODY told us. Unbelievable.",
        "We had a transfer booked and a dinner. Who pays for that?",
        "Can't we just fly a day later, then?",
        "And the hotel? I'm not paying for a night I don't sleep there.",
    ),
    _scenario(
        "loyalty_points",
        "easy",
        "loyalty",
        """You work for a chain of coffee shops. One point for each euro, 50 points are a drink.
        Points arrive after 24 hours and are kept for 12 months. Missing ones are added from a photo
        of the receipt, for receipts of the last 30 days.""",
        "I think you owe me points :)",
        "I paid 12.40 on Tuesday and again 9 yesterday, the app shows 30 like before",
        "found Tuesday's receipt. where do I put the photo?",
    ),
]
