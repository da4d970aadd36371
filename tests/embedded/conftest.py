"""Tests of what `embedded/` does otherwise than the original detectron2 are skipped there, each with the reason."""

import detectron2
import pytest

STRICTER = "embedded/ is stricter, or says more"
OTHERWISE = {
    "test_bare_and_wrapped_state_dicts": "upstream keeps no metadata of pycls files",
    "test_ground_truth_as_predictions_scores_100": "upstream's fast scores need its compiled part",
    "test_the_numbers_are_those_of_pycocotools[True-None]": "upstream's fast scores need its compiled part",
    "test_predictions_are_written_with_the_ids_of_the_data_set": "upstream's fast scores need its compiled part",
    "test_a_sampler_makes_a_stream": "upstream takes samplers of torch alone, not any iterable",
    "test_the_batch_must_divide_among_processes": "upstream binds the number of processes where it is used",
    "test_convert_back_from_bgr_and_grey": "upstream makes three channels of a grey image",
    "test_missing_sizes_are_filled_in": "upstream fills in sizes only where both are missing",
    "test_the_given_polygon_is_not_changed": "upstream changes the array it is given",
    "test_a_run_learns_checkpoints_evaluates_and_writes": "upstream writes the lines of an evaluation at another place",
    "test_the_parts_are_the_ones_overridden": "upstream leaves the output folder to its writers",
    "test_set_up_records_the_config_and_seeds": "upstream's log has other words",
    "test_two_processes_score_like_one": "upstream's data needs all metadata",
    "test_progress_says_where_the_time_goes_and_how_much_is_left": "upstream's log follows another clock",
    "test_the_mode_comes_back_even_after_an_error[True]": "upstream leaves the model in the other mode",
    "test_two_processes_end_with_equal_weights": "upstream's parallel training needs a GPU",
    "test_frozen_batch_norm_is_batch_norm_at_inference": "upstream also keeps the count of batches",
    "test_impossible_settings_are_refused": STRICTER,
    "test_convert_keeps_the_container_and_the_input[array]": "upstream refuses a single box in an array",
    "test_convert_keeps_the_container_and_the_input[tensor]": "upstream refuses a single box in a tensor",
    "test_not_a_list_of_lists": STRICTER,
    "test_min_iou_crop_holds_the_centre_of_a_box": "upstream's crop may hold no centre",
    "test_locate": STRICTER,
    "test_setup_logger_writes_to_the_console_and_to_a_file": "upstream's file has another layout",
    "test_model_statistics": "upstream traces the model",
    "test_semantic_frames_have_fixed_colours_and_modes_are_checked": "upstream takes only its own metadata class",
    "test_the_memory_of_what_was_seen_does_not_grow": "upstream takes only its own metadata class",
    "test_tiny_images_can_be_drawn_on": "upstream takes only its own metadata class",
    "test_nothing_predicted_leaves_the_image_as_it_is": "upstream takes only its own metadata class",
    "test_generic_mask_knows_area_box_and_outline": "upstream's boxes follow the outline, a pixel less",
    "test_the_palette_has_74_colours_and_orders": "only 70 of upstream's 74 colours differ",
}


def pytest_collection_modifyitems(items):
    if getattr(detectron2, "EMBEDDED", False):
        return
    for item in items:
        if "embedded" not in item.path.parts:
            continue
        reason = OTHERWISE.get(item.name, OTHERWISE.get(item.name.split("[")[0]))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
