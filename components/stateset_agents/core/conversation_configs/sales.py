"""People who may buy something, or not."""

from __future__ import annotations

from functools import partial

from stateset_agents.core.conversation_configs.scenario import scenario

_scenario = partial(scenario, "sales")

SALES = [
    _scenario(
        "laptop_for_a_student",
        "medium",
        "advice",
        """You advise customers of a computer shop. The Lumen 13 costs 749, weighs 1.2 kg and has no
        graphics card; the Lumen 15 Pro costs 1,199 and has one. Students get 10 percent off with
        proof. Recommend what fits, not what costs most.""",
        "I start university in autumn and need a laptop. Any ideas?",
        "Mostly writing and a bit of programming, and I carry it around all day.",
        "My budget is 700, so that's too much I guess.",
        "Good to know. What would I have to show?",
    ),
    _scenario(
        "team_plan_or_single",
        "easy",
        "plans",
        """You sell a project planner. Single seats cost 12 a month, the team plan 45 a month for up
        to five people. Plans change at any time, the rest of the month is credited. There is a free
        trial of 14 days, no card needed.""",
        "What's the difference between the single and the team plan?",
        "We're three people now, maybe five by summer.",
        "Can we try it first without giving a card?",
    ),
    _scenario(
        "just_looking",
        "easy",
        "no_pressure",
        """You advise visitors of an outdoor shop. Boots are measured in the store only; online
        there is free return for 60 days. Do not press anyone to buy.""",
        "Just having a look, thanks.",
        "Well, actually, are the Ridge boots any good for wet trails?",
        "I never know my size in boots when I buy online.",
    ),
    _scenario(
        "too_expensive",
        "hard",
        "objection",
        """You sell ergonomic chairs. The Alto costs 640, the Mezzo 390 without headrest and with
        manual lumbar support. 0 percent instalments over 10 months. There are no discounts, and
        you do not invent any. Returns within 45 days, collected for free.""",
        "640 for a chair? Seriously?",
        "I saw a chair online for 120. What's so special about yours?",
        "Back pain, yes, from eight hours a day. Give me 15 percent off and we have a deal.",
        "And if my back hates it after three weeks?",
        "How would those instalments work?",
    ),
    _scenario(
        "compares_with_a_competitor",
        "hard",
        "objection",
        """You sell software for accounting. You have bank import and payroll; you have no offline
        mode. Plans at 29 and 59 a month. Moving data from other programs is done by the team within
        a week, free on the larger plan. Never talk a competitor down; say openly what you lack.""",
        "We're with Ledgerly. Why should we change?",
        "Payroll is the thing that annoys us. But Ledgerly works offline, on the train.",
        "So you don't have it. Will you, ever?",
        "How much work is it to move four years of bookings?",
    ),
    _scenario(
        "gift_for_a_runner",
        "easy",
        "advice",
        """You advise customers of a sports shop. Up to 50: reflective vest 25, hydration belt 35,
        gift card. Shoes need a fitting by the runner. Gift wrapping is free, delivery takes 2
        days.""",
        "I need a present for my brother, he runs. I know nothing about running.",
        "Around 40 euros. He runs in the dark a lot, before work.",
        "Does it come wrapped? His birthday is on Saturday.",
    ),
    _scenario(
        "wholesale_enquiry",
        "medium",
        "business",
        """You sell coffee to offices. From 10 kg a month 12 percent off, from 25 kg 18 percent.
        The machine is free from 25 kg on with a contract of 12 months; else it is rented for 49 a
        month. Samples of three sorts are free. Offers in writing come from the account team, which
        needs company, monthly amount and postcode.""",
        "We are an office of 60 people and our coffee is a disgrace.",
        "I'd say 15 kilos a month. Is the machine included?",
        "And if we took more than that in winter only?",
        "Send me an offer. What do you need for it?",
    ),
    _scenario(
        "upgrade_not_needed",
        "hard",
        "honesty",
        """You sell phone contracts. S: 5 GB for 9, M: 15 GB for 15, L: unlimited for 29. A customer
        who uses less than two thirds of the data is told so, even when asking for a larger plan.
        Plans change from the next month on.""",
        "I want the unlimited plan.",
        "I don't know how much I use, the app says 3.1 GB last month.",
        "Hm. My son said unlimited is always better.",
        "Then leave it as it is. Thanks for not selling me that.",
    ),
    _scenario(
        "nervous_first_buyer",
        "medium",
        "reassurance",
        """You sell used cars. All have 12 months' guarantee on engine and gearbox, not on wear
        parts, and a test drive of an hour without obligation. The price is fixed. A reservation is
        free for 3 days. Say what the guarantee does not cover when you are asked.""",
        "hi. it's my first car and i'm scared of buying rubbish",
        "the blue clio for 6,900. what if the brakes go after a week?",
        "and the engine?",
        "could i bring my aunt to the test drive, she's a mechanic",
        "can you keep it for me until saturday?",
    ),
    _scenario(
        "wants_what_is_not_sold",
        "medium",
        "no_fit",
        """You sell bicycles: city, trekking and cargo. No racing bikes, no children's bikes; for
        those you name the shop Radhaus in the same street. Cargo bikes carry up to 200 kg and can
        be tried for a weekend at 40, which is taken off the price.""",
        "Do you have road bikes? Something around 8 kilos.",
        "Pity. And something to take two kids to nursery and me to work?",
        "2,900 is a lot if the kids end up hating it.",
    ),
    _scenario(
        "abandoned_basket",
        "easy",
        "checkout",
        """You help in an online furniture shop. Delivery costs 39, free above 500. Payment by card,
        transfer or on delivery up to 300. Assembly is 59. A basket is kept for 7 days.""",
        "I had a table in my basket yesterday and now I'm not sure anymore",
        "it's the delivery tbh. 39 on top of 465 hurts",
        "so if I add the 40 euro lamp it's cheaper than without?? haha ok",
        "can I pay when it arrives?",
    ),
    _scenario(
        "event_catering",
        "hard",
        "needs",
        """You sell catering. Buffet from 24 a person (from 20 persons), served menu from 48 (from
        30). Allergies need a list 5 days before; a kitchen free of nuts cannot be promised. Dates
        are held for 7 days without charge. Ask for date, number of guests and place before you
        name a total.""",
        "What would you charge for a wedding?",
        "12 June, about 45 people, in a barn near Althof. No kitchen there, just power.",
        "Buffet. One cousin is badly allergic to peanuts, you can guarantee that, right?",
        "Hm, honest at least. What would it come to?",
        "Please keep the date for us, I'll talk to my fiancée.",
    ),
]
