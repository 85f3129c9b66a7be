"""Colours, typography and spacing: the report's palette as a Gradio theme, fonts that ship with Gradio, no download."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

STATIC = Path(__file__).parent / "static"

BLUE = colors.Color(
    name="mmalign-blue",
    c50="#eef3fd",
    c100="#dbe6fb",
    c200="#b9cef7",
    c300="#8fb1f1",
    c400="#5c8ae6",
    c500="#1f5fd6",
    c600="#1a51b8",
    c700="#164396",
    c800="#123676",
    c900="#0f2b5d",
    c950="#0a1c3d",
)
STONE = colors.Color(
    name="mmalign-stone",
    c50="#fbfaf7",
    c100="#f4f2ec",
    c200="#e4e0d8",
    c300="#cfcac0",
    c400="#9d9b95",
    c500="#6d6a63",
    c600="#4a4843",
    c700="#30323b",
    c800="#1b1d24",
    c900="#16181e",
    c950="#101116",
)


def theme() -> gr.themes.Base:
    """The theme, light and dark."""
    made = gr.themes.Base(
        primary_hue=BLUE,
        secondary_hue=BLUE,
        neutral_hue=STONE,
        spacing_size=sizes.spacing_md,
        radius_size=sizes.radius_md,
        text_size=sizes.text_md,
        font=(fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(fonts.LocalFont("IBM Plex Mono", weights=(400, 600)), "ui-monospace", "monospace"),
    )
    made.name = "mmalign"
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#14151a",
        body_text_color="#1d1c1a",
        body_text_color_dark="#eceae4",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1b1d24",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="#20222a",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#30323b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1b1d24",
        block_border_width="1px",
        block_label_text_color="*neutral_500",
        block_label_text_color_dark="*neutral_400",
        block_title_text_weight="700",
        block_title_text_color="#1d1c1a",
        block_title_text_color_dark="#eceae4",
        block_shadow="none",
        block_radius="12px",
        block_padding="14px",
        input_background_fill="*neutral_50",
        input_background_fill_dark="#14151a",
        input_border_color="*neutral_200",
        input_border_color_dark="#30323b",
        input_border_color_focus="*primary_500",
        input_radius="8px",
        layout_gap="14px",
        button_large_radius="10px",
        button_medium_radius="9px",
        button_small_radius="8px",
        button_large_text_weight="700",
        button_primary_background_fill="*primary_500",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="#2a66d9",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#262932",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="#30343f",
        button_secondary_border_color="*neutral_200",
        button_secondary_border_color_dark="#3a3d47",
        button_border_width="1px",
        slider_color="*primary_500",
        slider_color_dark="#5c8ae6",
        link_text_color="*primary_500",
        link_text_color_dark="#7aa7ff",
        loader_color="*primary_500",
    )


def css() -> str:
    """The style sheet beside the theme."""
    return (STATIC / "style.css").read_text(encoding="utf-8")


def head() -> str:
    """Style of the page around Gradio's components, and the keyboard shortcuts; nothing is loaded from elsewhere."""
    script = (STATIC / "keys.js").read_text(encoding="utf-8")
    page = (STATIC / "page.css").read_text(encoding="utf-8")
    return f'<meta name="color-scheme" content="light dark"><style>{page}</style><script>{script}</script>'
