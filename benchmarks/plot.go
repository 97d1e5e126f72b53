package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
)

// colors of the contestants, distinct for the colour-blind as well.
var colors = map[string]string{
	"skimfs": "#0072b2", "limit": "#56b4e9", "native": "#999999", "squashfuse": "#e69f00", "full pull": "#d55e00",
}

// svg draws the medians as bars on a logarithmic scale, one group a row, one panel a table.
func (r *results) svg() []byte {
	const labelWidth, barWidth, bar, gap, head = 250, 560, 11, 8, 34
	var body bytes.Buffer
	y := 20
	for _, t := range r.tables() {
		rows, contestants := r.rows(t[0], t[1])
		low, high := math.Inf(1), math.Inf(-1)
		for _, k := range rows {
			for _, c := range contestants {
				if s := r.pick(t[0], t[1], k.row, k.state, c, seconds); s.n > 0 {
					low, high = min(low, s.min), max(high, s.max)
				}
			}
		}
		first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
		x := func(v float64) float64 { return labelWidth + barWidth*(math.Log10(v)-first)/max(last-first, 1) }
		title := t[0]
		if t[1] != "" {
			title += ", servers " + t[1] + " away"
		}
		fmt.Fprintf(&body, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(title))
		y += 18
		legend := labelWidth
		for _, c := range contestants {
			fmt.Fprintf(&body, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", legend, y-9, colors[c], legend+14, y, c)
			legend += 100
		}
		y += head
		top := y - 12
		for _, k := range rows {
			groupTop := y
			for _, c := range contestants {
				s := r.pick(t[0], t[1], k.row, k.state, c, seconds)
				if s.n == 0 {
					continue
				}
				fmt.Fprintf(&body, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><path d="M%.1f %.1fH%.1f" stroke="#000"/><text x="%.1f" y="%d" font-size="9">%s</text>`+"\n",
					labelWidth, y, max(x(s.median)-labelWidth, 1), bar-2, colors[c], x(s.min), float64(y)+4.5, x(s.max), max(x(s.median), x(s.max))+4, y+8, shortSeconds(s.median))
				y += bar
			}
			fmt.Fprintf(&body, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, (groupTop+y)/2+4, html.EscapeString(k.row+" · "+string(k.state)))
			y += gap
		}
		for e := first; e <= last; e++ {
			at := x(math.Pow(10, e))
			fmt.Fprintf(&body, `<path d="M%.1f %dV%d" stroke="#ccc"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%s s</text>`+"\n", at, top, y, at, top-2, fmt.Sprint(math.Pow(10, e)))
		}
		y += 30
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="#fff"/>`+"\n", labelWidth+barWidth+60, y)
	out.Write(body.Bytes())
	out.WriteString("</svg>\n")
	return slices.Clip(out.Bytes())
}
