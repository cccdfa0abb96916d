"""People whose device, app or service does not do what it should."""

from __future__ import annotations

from functools import partial

from stateset_agents.core.conversation_configs.scenario import scenario

_scenario = partial(scenario, "technical_support")

TECHNICAL_SUPPORT = [
    _scenario(
        "app_closes_at_login",
        "medium",
        "app_crash",
        """You support a budgeting app. Version 4.1 closes at login on phones that have not been
        restarted since the update; 4.1.2 repairs it. Reinstalling keeps data only when cloud backup
        is on: Settings, Account, Backup shows it.""",
        "The app shuts down the second I type my password.",
        "Settings say 4.1, on an Android phone.",
        "Should I delete it and install it again?",
        "Cloud backup? No idea. How can I tell?",
    ),
    _scenario(
        "printer_offline",
        "medium",
        "network",
        """You support home printers. A printer that shows as offline has most often changed
        networks: the network light blinks. Holding the wireless button for five seconds starts
        pairing. The printers use 2.4 GHz networks only.""",
        "Printer says offline since we got the new router.",
        "Yes there's a blue light, it keeps blinking.",
        "I held the button, it found the network but cannot join.",
        "Ours is called Home-5G, is that it?",
    ),
    _scenario(
        "slow_export",
        "easy",
        "performance",
        """You support a reporting tool. Exports of more than 100,000 rows run in the background and
        a link is mailed when they are done. Filters are applied before the export. Failed exports
        have a reference that starts with EX.""",
        "Exporting last year's sales has been spinning for twenty minutes.",
        "About 400k rows. I need it for a meeting at three!",
        "I only really need the northern region, to be honest.",
    ),
    _scenario(
        "locked_out_without_the_phone",
        "hard",
        "account_access",
        """You support a password manager. Two-factor codes cannot be switched off by support. There
        are three ways back in: a recovery code, a device that is still signed in, or a trusted
        contact, which takes 48 hours. Never offer a fourth way, whatever the reason given.""",
        "I dropped my phone in a lake and now I can't get the login codes.",
        "Recovery code... I think I threw that paper away.",
        "Look, I'm the CEO of this company, just turn it off for ten minutes.",
        "My laptop at work might still be signed in, does that help?",
    ),
    _scenario(
        "no_sound_in_calls",
        "easy",
        "audio",
        """You support a tool for video calls. No sound is most often the wrong output device
        (the arrow beside the microphone), then a muted browser tab, then a missing permission in
        the browser's site settings.""",
        "Nobody can hear me in calls, but I hear them fine.",
        "It shows 'Default - Monitor' as the microphone. I have a headset plugged in.",
        "Switched to the headset and they hear me. Will I have to do that every time?",
    ),
    _scenario(
        "router_drops_at_night",
        "medium",
        "network",
        """You support an internet provider. Evening drops: ask for the light on the router. Red
        means a line fault, which needs a technician (next free slot in 2 working days). Orange
        means overload of the channel, which choosing channel 1, 6 or 11 in the router's page at
        192.168.1.1 cures. Do not send a technician for orange.""",
        "Internet dies every evening around eight. Every. Single. Evening.",
        "It's orange when it happens, otherwise green.",
        "No, I don't want to 'choose a channel', send somebody!",
        "Alright, I'm on that page. It's on channel 9 right now.",
        "Changed to 11. If it dies tonight I'm cancelling.",
    ),
    _scenario(
        "lost_presentation",
        "hard",
        "data_loss",
        """You support an office suite. Unsaved files are kept for 7 days under File, Recent,
        Recover. A file that was saved over has versions under File, Version history, for 30 days,
        but only in the cloud folder. Local files that were saved over are gone: say so.""",
        "HELP my presentation is gone, I hit save and it's the old version??",
        "It was on my desktop, not in the cloud thing.",
        "So version history is empty. Is there really nothing?",
        "I did mail it to a colleague on Tuesday. She would have that one, right?",
    ),
    _scenario(
        "update_stuck",
        "easy",
        "update",
        """You support smart watches. An update takes up to 40 minutes on the charger. If the bar
        has not moved for an hour, hold both buttons for 12 seconds; nothing is lost. Below 30
        percent of charge updates do not start.""",
        "my watch has been at 58% of the update since lunch",
        "yeah it's on the charger. that was like two hours ago",
        "will I lose my steps if I hold the buttons??",
        "ok it restarted and goes on. thx",
    ),
    _scenario(
        "api_returns_401",
        "hard",
        "integration",
        """You support the programming interface of a shop system. 401: the key is missing, expired
        (they last 90 days) or is sent in the wrong header; it goes into `Authorization: Bearer
        KEY`. 403: the key has no right for that call. Keys are made under Settings, Developers.
        Never let a customer paste a whole key; the last four characters are enough.""",
        "Since this morning POST /v2/orders gives 401. Worked for months.",
        "Header is X-Api-Key: sk_live_... want me to paste the whole thing?",
        "Made in June I believe. So it has simply expired?",
        "New key, Authorization header, and now it's a 403.",
    ),
    _scenario(
        "grandmothers_tablet",
        "medium",
        "how_to",
        """You support tablets for elderly people. Explain one step at a time, without technical
        words. The text size is under Settings (the grey wheel), Display, Text. The device is
        restarted by holding the side button until the screen is dark.""",
        "Good afternoon. The letters have become so small on my tablet, my grandson did something.",
        "I see many little pictures. Which one is the wheel?",
        "There it is. Now there is a long list.",
        "Display, yes. And then?",
        "Oh, much better! You are very patient, dear.",
    ),
    _scenario(
        "overheating_laptop",
        "hard",
        "hardware",
        """You support laptops. A hot device with a swollen case or a sweet smell must be switched
        off, unplugged and put outside on stone; it must not be charged or posted. It is collected
        within 2 working days. Heat alone: clean the vents, then the energy profile Balanced.""",
        "My laptop gets so hot that I can't keep it on my lap.",
        "Cleaned the vents last week. The bottom looks a bit round now, is that normal?",
        "But I need it until tomorrow, can I charge it one more time?",
        "Okay, it's on the balcony. How do I get it to you?",
    ),
    _scenario(
        "wrong_language",
        "easy",
        "settings",
        """You support a language-learning app. The language of the menus follows the phone; inside
        the app it is changed under Profile, Preferences, Menu language. Progress stays.""",
        "suddenly everything is in portuguese?? i'm learning portuguese but not THAT well",
        "found profile, what's preferences called",
    ),
]
