"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const ints = (text) => new Int32Array(bytes(text).buffer);
  const percent = (share) => (100 * share).toFixed(1) + "%";
  const side = data.side, heat = bytes(data.heat);
  const canvas = at("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = canvas.height = side;
  const NAMES = { super_tokens: "super tokens", attention: "attention of the class token", reduction: "reduced tokens" };
  const state = { image: 0, view: "", step: {}, cursor: [side >> 1, side >> 1] };  // the cursor: row, column
  let shown = null, pixels = null;

  // The unit (feature, key or token) of each row or column of the picture, and where each unit's middle lies.
  const units = (axis) => data.places[state.view][axis];
  const unit = () => [units(0)[state.cursor[0]], units(1)[state.cursor[1]]];
  function move(axis, by) {
    const places = units(axis), stops = [...new Set(places)];
    const next = Math.min(Math.max(stops.indexOf(places[state.cursor[axis]]) + by, 0), stops.length - 1);
    const first = places.indexOf(stops[next]), last = places.lastIndexOf(stops[next]);
    state.cursor[axis] = (first + last) >> 1;
  }

  function unpack(image) {  // once for each image, when it is chosen
    const found = { views: {} };
    const tokens = image.super_tokens;
    if (tokens)
      found.views.super_tokens = { shape: tokens.shape, labels: tokens.labels.map(ints),
        affinities: tokens.affinities.map(bytes), greatest: tokens.greatest };
    if (image.attention) found.views.attention = image.attention.map((block) => ({ ...block, maps: bytes(block.maps) }));
    if (image.reduction)
      found.views.reduction = image.reduction.map((stage) => ({ ...stage, places: ints(stage.places) }));
    return found;
  }

  function stepNames() {
    const view = shown.views[state.view];
    if (state.view === "super_tokens")
      return view.labels.map((_, step) => (step ? "iteration " + step : "the cells, before the first iteration"));
    if (state.view === "attention") return view.map((_, block) => "block " + block);
    return ["all " + data.grid[0] * data.grid[1] + " tokens"].concat(
      view.map((stage, number) => data.stages[number] + ": " + stage.counts.tokens + " tokens, " +
        stage.counts.dropped + " dropped, " + stage.counts.merged + " merged"));
  }

  // What to draw: a region of each unit for the borders; heat 0..1 or less than 0 for none; which are dark.
  function layers(step) {
    const view = shown.views[state.view], [y, x] = unit();
    if (state.view === "super_tokens") {
      const width = view.shape[1], labels = view.labels[step], own = labels[y * width + x];
      const region = (row, column) => labels[row * width + column];
      let warm = null;
      if (step && at("heat").checked) {
        const affinity = view.affinities[step - 1], columns = data.grid[1];
        const row = Math.floor(own / columns), column = own % columns;
        warm = (r, c) => {
          const down = row - Math.floor(r / data.cell[0]) + 1, right = column - Math.floor(c / data.cell[1]) + 1;
          if (down < 0 || down > 2 || right < 0 || right > 2) return 0;
          return affinity[(r * width + c) * 9 + 3 * down + right] / 255;  // of the greatest of all
        };
      }
      return { region, own, warm, dark: () => false };
    }
    if (state.view === "attention") {
      const [rows, columns] = data.keys, start = Number(at("head").value) * rows * columns, block = view[step];
      const factor = block.greatest / 255 / greatest();
      return { region: () => 0, own: -1, dark: () => false,
        warm: (row, column) => block.maps[start + row * columns + column] * factor };
    }
    const columns = data.grid[1], places = step ? view[step - 1].places : null;
    const sizes = new Map();
    if (places) for (const place of places) sizes.set(place, (sizes.get(place) || 0) + 1);
    const region = (row, column) => {  // as on the sheets: each group of merged ones, all that are alone, all dropped
      if (!places) return 0;
      const place = places[row * columns + column];
      return place < 0 ? -1 : sizes.get(place) > 1 ? place + 1 : 0;
    };
    const own = places ? region(y, x) : 0;
    return { region, own: own > 0 ? own : -2, warm: null,
      dark: (row, column) => places !== null && places[row * columns + column] < 0 };
  }

  function greatest() {
    const name = Number(at("head").value) ? "greatest" : "greatest_mean";
    return Math.max(...shown.views.attention.map((block) => block[name])) || 1;
  }

  function draw() {
    const step = state.step[state.view] || 0, { region, own, warm, dark } = layers(step);
    const picture = new ImageData(new Uint8ClampedArray(pixels), side, side), out = picture.data;
    const ys = units(0), xs = units(1);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const at4 = 4 * (y * side + x), here = region(ys[y], xs[x]);
        if (warm) {
          const grey = 0.299 * out[at4] + 0.587 * out[at4 + 1] + 0.114 * out[at4 + 2];
          const colour = 3 * Math.round(255 * Math.min(1, warm(ys[y], xs[x])));
          for (let k = 0; k < 3; k++) out[at4 + k] = 0.4 * grey + 0.6 * heat[colour + k];
        } else if (dark(ys[y], xs[x])) for (let k = 0; k < 3; k++) out[at4 + k] *= data.dimmed;
        const wide = own === here ? 3 : 1;  // the chosen region has a wider border, on its own side
        const right = x + wide < side ? region(ys[y], xs[x + wide]) : here;
        const below = y + wide < side ? region(ys[y + wide], xs[x]) : here;
        const left = x >= wide ? region(ys[y], xs[x - wide]) : here;
        const above = y >= wide ? region(ys[y - wide], xs[x]) : here;
        if (right === here && below === here && left === here && above === here) continue;
        const chosen = here === own, beside = [right, below, left, above].includes(own);
        const light = chosen || (!beside && (right !== here || below !== here));
        for (let k = 0; k < 3; k++) out[at4 + k] = (light ? data.light : data.dark)[k];
      }
    pen.putImageData(picture, 0, 0);
    const [y, x] = state.cursor, arm = Math.max(6, side / 40);
    for (const [width, colour] of [[5, "#000"], [2, "#fff"]]) {
      pen.lineWidth = width;
      pen.strokeStyle = colour;
      pen.beginPath();
      pen.moveTo(x - arm, y + 0.5);
      pen.lineTo(x + arm, y + 0.5);
      pen.moveTo(x + 0.5, y - arm);
      pen.lineTo(x + 0.5, y + arm);
      pen.stroke();
    }
    tell(step);
  }

  function tell(step) {
    const view = shown.views[state.view], [y, x] = unit(), name = stepNames()[step];
    at("step-text").textContent = name;
    at("nine").hidden = at("fate").hidden = true;
    if (state.view === "super_tokens") {
      const [height, width] = view.shape, columns = data.grid[1], own = view.labels[step][y * width + x];
      at("title").textContent = "Pixel " + y + "," + x + " of the " + height + " × " + width + " features";
      at("now").textContent = name + ": it belongs to super token " + Math.floor(own / columns) + "," + (own % columns) +
        "; its cell is " + Math.floor(y / data.cell[0]) + "," + Math.floor(x / data.cell[1]) + ".";
      if (step) tellNine(view.affinities[step - 1].subarray((y * width + x) * 9, (y * width + x) * 9 + 9), y, x, own);
    } else if (state.view === "attention") {
      const [rows, columns] = data.keys, head = Number(at("head").value), block = view[step];
      const value = (block.maps[head * rows * columns + y * columns + x] / 255) * block.greatest;
      at("title").textContent = "Token " + y + "," + x + " of the " + rows + " × " + columns;
      at("now").textContent = name + ": " + at("head").selectedOptions[0].textContent + ", the class token gives it " +
        percent(value) + " of its attention; equal shares would be " + percent(1 / (rows * columns)) + ".";
    } else {
      const token = y * data.grid[1] + x;
      at("title").textContent = "Token " + y + "," + x + " of the " + data.grid[0] + " × " + data.grid[1];
      const fates = view.map(({ places }) => {
        if (places[token] < 0) return "dropped";
        const others = places.reduce((sum, place) => sum + (place === places[token]), 0) - 1;
        return others ? "merged with " + others + (others > 1 ? " others" : " other") : "kept";
      });
      at("now").textContent = step ? data.stages[step - 1] + ": " + fates[step - 1] + "." : "Before the first reduction.";
      at("fate").hidden = false;
      at("fate").replaceChildren(...fates.map((fate, number) => {
        const item = document.createElement("li");
        item.textContent = data.stages[number] + ": " + fate;
        return item;
      }));
    }
  }

  function tellNine(affinity, y, x, own) {
    const row = Math.floor(y / data.cell[0]), column = Math.floor(x / data.cell[1]), [rows, columns] = data.grid;
    const table = at("nine");
    table.hidden = false;
    table.tBodies[0].replaceChildren(...[-1, 0, 1].map((down) => {
      const line = document.createElement("tr");
      for (const right of [-1, 0, 1]) {
        const cell = line.insertCell(), value = affinity[3 * (down + 1) + right + 1];
        const r = row + down, c = column + right, inside = r >= 0 && r < rows && c >= 0 && c < columns;
        const place = document.createElement("span");
        place.textContent = inside ? r + "," + c : "beyond";
        cell.append(percent((value / 255) * shown.views.super_tokens.greatest), place);
        cell.className = inside && r * columns + c === own ? "own" : "";
        cell.style.backgroundColor = "rgb(" + heat.slice(3 * value, 3 * value + 3).join(" ") + ")";
        cell.style.color = value > 150 ? "#000" : "#fff";
      }
      return line;
    }));
  }

  function chooseView() {
    const view = shown.views[state.view], names = stepNames();
    at("step-name").textContent = { super_tokens: "Iteration", attention: "Block", reduction: "Stage" }[state.view];
    at("steps").hidden = names.length < 2;
    at("step").max = names.length - 1;
    state.step[state.view] = Math.min(state.step[state.view] ?? names.length - 1, names.length - 1);
    at("step").value = state.step[state.view];
    at("heads").hidden = state.view !== "attention";
    at("heats").hidden = state.view !== "super_tokens" || names.length < 2;
    if (state.view === "attention") {
      const [rows, columns] = data.keys, count = view[0].maps.length / rows / columns - 1, before = at("head").value;
      at("head").replaceChildren(...Array.from({ length: count + 1 }, (_, head) =>
        new Option(head ? "head " + (head - 1) : "mean of the heads", head)));
      if (before) at("head").value = before;
    }
    again();
  }

  function again() {
    const attention = state.view === "attention";
    const warm = attention || (state.view === "super_tokens" && at("heat").checked && state.step[state.view] > 0);
    at("scale").hidden = !warm;
    if (warm) at("greatest").textContent = attention ? percent(greatest()) + ", one scale for all blocks"
      : percent(shown.views.super_tokens.greatest) + ", one scale for all iterations";
    canvas.setAttribute("aria-label", data.images[state.image].name + ": " + NAMES[state.view]);
    draw();
  }

  function chooseImage(number) {
    state.image = number;
    shown = unpack(data.images[number]);
    const picture = new Image();
    picture.onload = () => {
      if (state.image !== number) return;
      pen.drawImage(picture, 0, 0, side, side);
      pixels = pen.getImageData(0, 0, side, side).data;
      document.body.dataset.ready = String(number);
      chooseView();
    };
    picture.src = data.images[number].picture;
  }

  function step(by) {
    const slider = at("step"), value = Math.min(Math.max(Number(slider.value) + by, 0), Number(slider.max));
    slider.value = state.step[state.view] = value;
    again();
  }

  function point(event) {
    if (!pixels) return;
    const box = canvas.getBoundingClientRect();
    const place = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    state.cursor = place.map((share) => Math.min(Math.max(Math.floor(share * side), 0), side - 1));
    draw();
  }

  const KEYS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [1, -1], ArrowRight: [1, 1],
    Home: [1, -side], End: [1, side] };
  const STEPS = { PageUp: -1, PageDown: 1, "-": -1, "+": 1, "=": 1 };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !pixels) return;
    if (event.key in KEYS) {
      move(...KEYS[event.key]);
      draw();
    } else if (event.key in STEPS) step(STEPS[event.key]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  at("step").addEventListener("input", () => step(0));
  at("head").addEventListener("change", again);
  at("heat").addEventListener("change", again);
  at("image").addEventListener("change", () => chooseImage(Number(at("image").value)));

  const bar = at("bar").getContext("2d"), strip = bar.createImageData(256, 1);
  for (let k = 0; k < 256; k++) strip.data.set([...heat.slice(3 * k, 3 * k + 3), 255], 4 * k);
  bar.putImageData(strip, 0, 0);
  at("image").replaceChildren(...data.images.map((image, number) => new Option(image.name, number)));
  for (const view of Object.keys(NAMES).filter((name) => name in data.images[0])) {
    const label = document.createElement("label"), radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "view";
    radio.value = view;
    radio.checked = !state.view;
    state.view = state.view || view;
    radio.addEventListener("change", () => {
      state.view = view;
      chooseView();
    });
    label.append(radio, " " + NAMES[view]);
    at("views").append(label);
  }
  chooseImage(0);
})();
