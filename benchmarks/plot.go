package main

import (
	"bytes"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// marks of the contestants: colours distinct for the colour-blind as well, and shapes.
var marks = map[string]draw.GlyphStyle{
	"skimfs":     {Color: color.RGBA{0x00, 0x72, 0xb2, 0xff}, Shape: draw.CircleGlyph{}, Radius: 4},
	"limit":      {Color: color.RGBA{0x20, 0x20, 0x20, 0xff}, Shape: draw.PlusGlyph{}, Radius: 4},
	"native":     {Color: color.RGBA{0x00, 0x9e, 0x73, 0xff}, Shape: draw.SquareGlyph{}, Radius: 3},
	"squashfuse": {Color: color.RGBA{0xe6, 0x9f, 0x00, 0xff}, Shape: draw.TriangleGlyph{}, Radius: 4},
	"full pull":  {Color: color.RGBA{0xd5, 0x5e, 0x00, 0xff}, Shape: draw.CrossGlyph{}, Radius: 4},
}

// panelWidth and rowHeight are sizes in the drawing; panelHead is what a panel has besides its rows.
const panelWidth, rowHeight, panelHead = 760, 15, 90

// png draws the medians as points on a logarithmic axis of seconds with a line from minimum to
// maximum, a line for each row and state, one panel a table. A point's place says all: bars would
// begin at an arbitrary second.
func (r *results) png() ([]byte, error) {
	var panels []*plot.Plot
	var heights []vg.Length
	var total vg.Length
	for _, t := range r.tables() {
		p, rows, err := r.panel(t[0], t[1])
		if err != nil {
			return nil, err
		}
		panels, heights = append(panels, p), append(heights, vg.Length(rows*rowHeight+panelHead))
		total += heights[len(heights)-1]
	}
	canvas := vgimg.NewWith(vgimg.UseWH(panelWidth, max(total, 1)), vgimg.UseDPI(96), vgimg.UseBackgroundColor(color.White))
	all := draw.New(canvas)
	top := total
	for i, p := range panels {
		top -= heights[i]
		p.Draw(draw.Crop(all, 6, -14, top+6, top+heights[i]-total-6))
	}
	var out bytes.Buffer
	_, err := vgimg.PngCanvas{Canvas: canvas}.WriteTo(&out)
	return out.Bytes(), err
}

// panel draws one table and returns the number of its rows.
func (r *results) panel(image, link string) (*plot.Plot, int, error) {
	rows, contestants := r.rows(image, link)
	p := plot.New()
	p.Title.Text = image
	if link != "" {
		p.Title.Text += ", servers " + link + " away"
	}
	p.Title.TextStyle.Font.Size = 13
	p.X.Label.Text = "seconds, less is better"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	p.Legend.Top, p.Legend.Left = true, false
	p.Legend.ThumbnailWidth = 14
	for _, style := range []*font.Font{&p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &p.X.Label.TextStyle.Font, &p.Legend.TextStyle.Font} {
		style.Size = 10
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xd0}, color.Gray{0xec}
	p.Add(grid)

	ticks := make([]plot.Tick, len(rows))
	low, high := math.Inf(1), math.Inf(-1)
	for i, k := range rows {
		ticks[i] = plot.Tick{Value: float64(len(rows) - i), Label: k.row + " · " + string(k.state)}
	}
	for _, c := range contestants {
		var points spreads
		for i, k := range rows {
			if s := r.pick(image, link, k.row, k.state, c, seconds); s.n > 0 {
				points.XYs = append(points.XYs, plotter.XY{X: s.median, Y: ticks[i].Value})
				points.XErrors = append(points.XErrors, struct{ Low, High float64 }{s.median - s.min, s.max - s.median})
				low, high = min(low, s.min), max(high, s.max)
			}
		}
		bars, err := plotter.NewXErrorBars(points)
		if err != nil {
			return nil, 0, err
		}
		scatter, err := plotter.NewScatter(points)
		if err != nil {
			return nil, 0, err
		}
		scatter.GlyphStyle = marks[c]
		bars.LineStyle.Color, bars.LineStyle.Width, bars.CapWidth = marks[c].Color, 1.5, 0
		p.Add(bars, scatter)
		p.Legend.Add(c, scatter)
	}
	p.Y.Tick.Marker = plot.ConstantTicks(ticks)
	// The legend has the space above the first row.
	p.Y.Min, p.Y.Max = 0.4, float64(len(rows))+0.6
	p.X.Min, p.X.Max = math.Pow(10, math.Floor(math.Log10(low))), math.Pow(10, math.Ceil(math.Log10(high)))
	if p.X.Min == p.X.Max {
		p.X.Max *= 10
	}
	// Beside the points, not over them.
	p.Legend.XOffs = 0
	p.X.Max *= math.Pow(p.X.Max/p.X.Min, 0.16)
	return p, len(rows), nil
}

// spreads are points with their errors in x.
type spreads struct {
	plotter.XYs
	plotter.XErrors
}

// decades marks the powers of ten with their value, 2 to 9 times these without one.
func decades(low, high float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
		for n := 1.0; n < 10; n++ {
			tick := plot.Tick{Value: n * math.Pow(10, e)}
			if n == 1 {
				tick.Label = strconv.FormatFloat(tick.Value, 'g', 3, 64)
			}
			if tick.Value >= low*0.999 && tick.Value <= high*1.001 {
				ticks = append(ticks, tick)
			}
		}
	}
	return ticks
}
