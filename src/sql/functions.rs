//! Functions that only compute. One that is not here is refused: it may write, sleep, lock, read
//! files, or tell of other people.

use super::target::Engine;

/// Known to all three, or harmless where they are known.
const EVERYWHERE: &str = "
    abs acos asin atan atan2 avg ceil ceiling char_length character_length coalesce concat concat_ws cos
    cot count cume_dist current_date current_time current_timestamp degrees dense_rank exp first_value
    floor greatest ifnull instr lag last_value lead least left length ln localtime localtimestamp log
    log10 log2 lower lpad ltrim max md5 min mod nth_value ntile nullif octet_length percent_rank pi
    position pow power radians rank replace reverse right round row_number rpad rtrim sign sin sqrt
    substr substring sum tan trim trunc truncate upper";

const POSTGRES: &str = "
    ascii bit_length btrim chr convert_from convert_to decode encode format_type initcap normalize
    overlay quote_ident quote_literal quote_nullable regexp_count regexp_instr regexp_like regexp_match
    regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr repeat
    sha224 sha256 sha384 sha512 split_part starts_with string_to_array string_to_table strpos to_ascii
    to_char to_date to_hex to_number to_timestamp translate unaccent unistr similarity word_similarity
    acosd acosh asind asinh atand atanh cbrt cosd cosh cotd div erf factorial gcd lcm min_scale random
    scale sind sinh tand tanh trim_scale width_bucket age clock_timestamp date_bin date_part date_trunc
    extract isfinite justify_days justify_hours justify_interval make_date make_interval make_time
    make_timestamp make_timestamptz now statement_timestamp timezone transaction_timestamp date
    timestamp timestamptz interval text any_value array_agg bit_and bit_or bit_xor bool_and bool_or corr
    covar_pop covar_samp every grouping json_agg json_object_agg jsonb_agg jsonb_object_agg mode
    percentile_cont percentile_disc range_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2
    regr_slope stddev stddev_pop stddev_samp string_agg var_pop var_samp variance array_to_json
    json_array json_array_elements json_array_elements_text json_array_length json_build_array
    json_build_object json_each json_each_text json_extract_path json_extract_path_text json_object
    json_object_keys json_strip_nulls json_typeof jsonb_array_elements jsonb_array_elements_text
    jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text
    jsonb_extract_path jsonb_extract_path_text jsonb_object jsonb_object_keys jsonb_path_exists
    jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_pretty
    jsonb_strip_nulls jsonb_typeof row_to_json to_json to_jsonb array array_append array_cat array_dims
    array_length array_lower array_ndims array_position array_positions array_prepend array_remove
    array_replace array_to_string array_upper cardinality daterange int4range int8range isempty
    lower_inc num_nonnulls num_nulls numrange range_merge row trim_array tsrange tstzrange unnest
    upper_inc generate_series generate_subscripts numnode phraseto_tsquery plainto_tsquery querytree
    setweight strip to_tsquery to_tsvector ts_headline ts_rank ts_rank_cd tsvector_to_array
    websearch_to_tsquery abbrev broadcast cosine_distance family gen_random_uuid host hostmask
    inner_product l1_distance l2_distance masklen netmask network uuid_extract_timestamp vector_dims
    vector_norm";

const MYSQL: &str = "
    adddate addtime any_value ascii bin bit_and bit_count bit_length bit_or bit_xor cast char conv
    convert convert_tz crc32 curdate curtime date date_add date_format date_sub datediff day dayname
    dayofmonth dayofweek dayofyear elt extract field find_in_set format from_base64 from_days
    from_unixtime group_concat grouping hex hour if insert isnull json_array json_array_length
    json_arrayagg json_contains json_contains_path json_depth json_extract json_keys json_length
    json_object json_objectagg json_overlaps json_pretty json_quote json_search json_type json_unquote
    json_valid json_value last_day lcase locate makedate maketime microsecond mid minute month monthname
    now oct ord period_add period_diff quarter quote rand regexp_instr regexp_like regexp_replace
    regexp_substr repeat sec_to_time second sha sha1 sha2 soundex st_astext st_distance_sphere st_x st_y
    std stddev stddev_pop stddev_samp str_to_date strcmp subdate substring_index subtime sysdate time
    time_format time_to_sec timediff timestamp timestampadd timestampdiff to_base64 to_days to_seconds
    ucase unhex unix_timestamp utc_date utc_time utc_timestamp uuid var_pop var_samp variance week
    weekday weekofyear year yearweek values row";

const SQLITE: &str = "
    char date datetime group_concat hex iif julianday json json_array json_array_length json_each
    json_extract json_group_array json_group_object json_object json_patch json_quote json_tree
    json_type json_valid likelihood likely match quote random soundex strftime string_agg time
    timediff total typeof unhex unicode unixepoch unlikely bm25 highlight snippet acosh asinh atanh cosh
    sinh tanh";

/// Known to SQLite too, where one call of them can take as long as its texts multiplied, and
/// nothing interrupts a call.
const ENDLESS_IN_SQLITE: [&str; 2] = ["instr", "replace"];
/// Likewise, when they are told which characters to look for.
const ENDLESS_WITH_TWO: [&str; 4] = ["ltrim", "rtrim", "trim", "unhex"];

/// Those that make a text of a given length.
const BOUNDED: [&str; 3] = ["lpad", "repeat", "rpad"];

/// Whether a function only computes; `name` is in lower case.
pub(super) fn is_allowed(engine: Engine, name: &str) -> bool {
    let own = match engine {
        Engine::Postgres => POSTGRES,
        Engine::MySql => MYSQL,
        Engine::Sqlite => SQLITE,
    };
    if engine == Engine::Sqlite && ENDLESS_IN_SQLITE.contains(&name) {
        return false;
    }
    EVERYWHERE.split_whitespace().chain(own.split_whitespace()).any(|known| known == name)
}

/// Whether so many arguments make a call that SQLite cannot end.
pub(super) fn is_endless(engine: Engine, name: &str, arguments: usize) -> bool {
    engine == Engine::Sqlite && arguments > 1 && ENDLESS_WITH_TWO.contains(&name)
}

/// Whether the second argument is the length of what comes out.
pub(super) fn is_bounded(name: &str) -> bool {
    BOUNDED.contains(&name)
}
