package containerd

import (
	"strconv"
	"strings"
	"time"

	"github.com/legion-swarm/legion/api"
)

// parseBool reads a filter's value as docker does.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "true":
		return true, nil
	case "0", "false":
		return false, nil
	}
	return false, api.Errorf(api.Invalid, "%q is neither true nor false", s)
}

// parseTime reads a point in time as docker's filters have it: seconds since
// 1970 with or without a fraction, RFC 3339 or a part of it, or a duration
// before now.
func parseTime(s string) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil && sec > -1e11 && sec < 1e11 {
		whole := int64(sec)
		return time.Unix(whole, int64((sec-float64(whole))*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, api.Errorf(api.Invalid, "%q is no time: write a duration as 24h, seconds since 1970, or a date as 2006-01-02T15:04:05", s)
}
