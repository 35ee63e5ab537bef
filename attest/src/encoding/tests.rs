use super::*;

#[test]
fn base64url_takes_both_forms_of_padding_and_one_spelling() {
    for good in ["-_8", "-_8="] {
        assert_eq!(base64url(good), Some(vec![0xFB, 0xFF]), "{good}");
    }
    // Another alphabet, a wrong length, bits that no byte needs, white space.
    for bad in ["+/8", "-_8==", "-", "-_9", "-_8 ", "-_8\n"] {
        assert_eq!(base64url(bad), None, "{bad:?}");
    }
    assert_eq!(base64url_strict("-_8"), Some(vec![0xFB, 0xFF]));
    assert_eq!(base64url_strict("-_8="), None);
}

#[test]
fn hexadecimal_has_exactly_the_length_that_is_wanted() {
    assert_eq!(hex_array::<2>("00aF"), Some([0, 0xAF]));
    for bad in ["00a", "00aff0", "0g00", "+100", "", "é00"] {
        assert_eq!(hex_array::<2>(bad), None, "{bad:?}");
    }
}
