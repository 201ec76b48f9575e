// The page of `diffbfr app`: hands photos in, follows their state and shows what became of them.

const OPTIONS = ["fidelity", "strength", "samples", "format", "min_face", "upscale", "only"];
const SWITCHES = ["adaptive", "any_size", "keep_metadata"];
const VERDICTS = {
  too_small: "left alone: smaller than the smallest face",
  larger_than_model: "left alone: it has more pixels than the cascade makes",
  cut_off: "left alone: the border cuts it off",
  turned_away: "left alone: turned away",
  covered: "left alone: partly covered",
  already_sharp: "left alone: sharp already",
  not_center: "left alone: not the one at the centre",
  not_largest: "left alone: not the largest",
};
const STATUSES = { restored: ["restored", "good"], failed: ["a face failed", "bad"] };
const RETRY_MS = 2000;

const at = (name) => document.getElementById(name);
const copy = (name) => at(name).content.firstElementChild.cloneNode(true);
let server = null;

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; start `diffbfr app` again, or wait until it does");
  }
  const body = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error), { status: answer.status });
  return body;
}

function isDoubtful(face) {
  return face.low_confidence || face.status === "failed";
}

function plural(number, one, many) {
  return `${number} ${number === 1 ? one : many}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function size(bytes) {
  const mebibytes = bytes / 2 ** 20;
  if (mebibytes < 1) return `${Math.ceil(bytes / 1024)} KiB`;
  return `${mebibytes.toFixed(mebibytes < 10 ? 1 : 0)} MiB`;
}

function chosen(name) {
  const query = new URLSearchParams({ name });
  for (const option of OPTIONS) if (at(option).value !== "") query.set(option, at(option).value);
  for (const option of SWITCHES) query.set(option, at(option).checked);
  return query;
}

class Card {
  constructor(file) {
    this.file = file;
    this.id = null;
    this.root = copy("card");
    this.find(".name").textContent = file.name;
    this.find(".close").addEventListener("click", () => this.remove());
    this.say("Handing it in", null, size(file.size));
    this.chip("new");
    this.preview = URL.createObjectURL(file);
    const image = this.find(".preview");
    image.addEventListener("error", () => image.removeAttribute("src"));
    image.src = this.preview;
    at("cards").prepend(this.root);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  async restore() {
    try {
      if (server && this.file.size > server.most_bytes) {
        throw new Error(`the photo has ${size(this.file.size)}; at most ${size(server.most_bytes)} are read; choose a smaller one`);
      }
      const headers = { "Content-Type": "application/octet-stream" };
      const query = chosen(this.file.name);
      let state = await ask(`/api/photos?${query}`, { method: "POST", headers, body: this.file });
      this.id = state.id;
      while (!state.has_ended) {
        this.follow(state);
        state = await this.next(state);
      }
      if (state.state === "done") await this.show(state);
      else this.refuse(state.message || state.reason, state.state);
    } catch (error) {
      this.refuse(error.message, "failed");
    }
  }

  async next(state) {
    for (;;) {
      try {
        return await ask(`/api/photos/${this.id}?after=${state.version}`);
      } catch (error) {
        if (error.status) throw error;
        this.say("The server does not answer", null, "asking again");
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    }
  }

  follow(state) {
    if (state.state === "waiting") {
      const before = state.num_before;
      this.say("Waiting", null, before ? `${plural(before, "photo", "photos")} before it` : "next");
    } else if (state.state === "reading") {
      this.say("Looking for faces", null, "");
    } else if (state.state === "restoring") {
      const left = state.seconds_left ? `about ${duration(state.seconds_left)} left` : "";
      const unit = state.samples > 1 ? ["restoration", "restorations"] : ["face", "faces"];
      this.say(`Restoring: ${state.num_done} of ${plural(state.num_draws, ...unit)}`, state.num_done / state.num_draws, left);
    } else {
      this.say("Pasting the faces back", 1, "");
    }
    this.chip(state.state);
  }

  say(doing, part, left) {
    this.find(".doing").textContent = doing;
    const bar = this.find("progress");
    if (part === null || part === 0) bar.removeAttribute("value");
    else bar.value = part;
    this.find(".left").textContent = left;
  }

  chip(text, kind = "") {
    const chip = this.find(".chip");
    chip.textContent = text;
    chip.className = `chip ${kind}`;
  }

  refuse(message, state) {
    this.chip(state, "bad");
    this.find(".busy").hidden = true;
    const line = this.find(".trouble");
    line.textContent = message;
    line.hidden = false;
  }

  async show(state) {
    const place = `/api/photos/${this.id}`;
    const [chip, kind] = STATUSES[state.status] || [this.isSame(state) ? "unchanged" : "no face restored", ""];
    this.chip(chip, kind);
    this.find(".summary").textContent = this.summary(state);
    this.find(".notes").textContent = state.message;
    const outputs = state.files.slice(0, state.samples);
    for (const file of state.files) this.find(".downloads").append(this.download(place, state, file));
    const slider = this.find(".compare input");
    const compare = this.find(".compare");
    slider.addEventListener("input", () => compare.style.setProperty("--cut", `${slider.value}%`));
    await this.load(".before", `${place}/before`);
    compare.style.setProperty("--ratio", state.width / state.height);
    compare.style.setProperty("--wide", `${state.width}px`);
    if (outputs.length > 1) {
      outputs.forEach((_, number) => this.tab(`restoration ${number + 1}`, () => this.draw(state, number, place)));
      this.tab(`where they differ`, () => this.spread(state, place));
      this.find(".tabs button").setAttribute("aria-pressed", "true");
    }
    this.find(".busy").hidden = true;
    this.find(".result").hidden = false;
    await this.draw(state, 0, place);
  }

  isSame(state) {
    return state.files[0].num_bytes === this.file.size;
  }

  summary(state) {
    const count = (status) => state.faces.filter((face) => face.status === status).length;
    const [restored, failed, alone] = ["restored", "failed", "left_alone"].map(count);
    const kept = this.isSame(state) ? "the photo is unchanged" : "only its size or format is changed";
    if (!state.faces.length) return `No face was found: ${kept}.`;
    if (!restored && !failed) return `${plural(alone, "face", "faces")} found, none restored: ${kept}.`;
    const parts = [`${plural(restored, "face", "faces")} restored`];
    if (failed) parts.push(`${failed} failed and kept as in the photo`);
    if (alone) parts.push(`${alone} left alone`);
    return `${parts.join(", ")}, in ${duration(state.seconds)}.`;
  }

  download(place, state, file) {
    const link = document.createElement("a");
    link.className = "button";
    link.href = `${place}/files/${file.number}`;
    link.download = file.name;
    const is_spread = state.samples > 1 && file.number === state.samples;
    const which = state.samples < 2 ? "Download" : is_spread ? "Differences" : `Download ${file.number + 1}`;
    link.textContent = which;
    link.title = `${file.name}, ${size(file.num_bytes)}`;
    return link;
  }

  tab(text, call) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => {
      for (const other of this.root.querySelectorAll(".tabs button")) other.setAttribute("aria-pressed", other === button);
      call();
    });
    this.find(".tabs").append(button);
  }

  async draw(state, number, place) {
    this.find(".compare").classList.remove("single");
    this.find(".tag.right").textContent = "after";
    await this.load(".after", `${place}/pictures/${number}`);
    this.faces(state);
  }

  async spread(state, place) {
    this.find(".compare").classList.add("single");
    this.find(".tag.right").textContent = "where the restorations differ";
    await this.load(".after", `${place}/pictures/${state.samples}`);
  }

  async load(selector, source) {
    const image = this.find(selector);
    image.src = source;
    try {
      await image.decode();
    } catch {
      this.find(".notes").textContent = "This picture cannot be shown; it can be downloaded.";
    }
  }

  faces(state) {
    const doubtful = (face) => (isDoubtful(face) ? 0 : face.status === "restored" ? 1 : 2);
    this.find(".boxes").replaceChildren();
    const sorted = [...state.faces].sort((a, b) => doubtful(a) - doubtful(b) || a.face - b.face);
    this.find(".faces").replaceChildren(...sorted.map((face) => this.face(state, face)));
  }

  face(state, face) {
    const figure = copy("face");
    const is_restored = face.status === "restored";
    figure.classList.toggle("doubt", isDoubtful(face));
    figure.classList.toggle("alone", !is_restored);
    const [before, after] = figure.querySelectorAll("canvas");
    this.crop(before, this.find(".before"), state, face);
    if (is_restored) this.crop(after, this.find(".after"), state, face);
    const title = face.low_confidence ? "doubtful: look closely" : is_restored ? "restored" : face.status === "failed" ? "failed" : VERDICTS[face.verdict] || face.verdict;
    figure.querySelector("b").textContent = title;
    const facts = [`${Math.round(face.eyes_px)} px between the eyes`];
    if (face.consistency !== null) facts.push(`${face.consistency.toFixed(1)} dB of consistency`);
    if (face.message) facts.push(face.message);
    figure.querySelector("span").textContent = facts.join(", ");
    const box = document.createElement("i");
    const share = (value, whole) => `${(100 * value) / whole}%`;
    box.style.left = share(face.left, state.width);
    box.style.top = share(face.top, state.height);
    box.style.width = share(face.right - face.left, state.width);
    box.style.height = share(face.bottom - face.top, state.height);
    this.find(".boxes").append(box);
    figure.addEventListener("pointerenter", () => box.classList.add("on"));
    figure.addEventListener("pointerleave", () => box.classList.remove("on"));
    return figure;
  }

  crop(canvas, image, state, face) {
    if (!image.naturalWidth) return;
    const scale = image.naturalWidth / state.width;
    const side = 1.5 * Math.max(face.right - face.left, face.bottom - face.top) * scale;
    const x = ((face.left + face.right) / 2) * scale - side / 2;
    const y = ((face.top + face.bottom) / 2) * scale - side / 2;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, x, y, side, side, 0, 0, canvas.width, canvas.height);
  }

  remove() {
    URL.revokeObjectURL(this.preview);
    this.root.remove();
    if (this.id) ask(`/api/photos/${this.id}`, { method: "DELETE" }).catch(() => {});
    arrange();
  }
}

function arrange() {
  const any = at("cards").childElementCount > 0;
  at("drop").classList.toggle("small", any);
  at("steps").hidden = any;
}

function take(files) {
  for (const file of files) new Card(file).restore();
  arrange();
}

function begin() {
  for (const output of document.querySelectorAll("output")) {
    const input = at(output.htmlFor[0]);
    const write = () => (output.value = input.value);
    input.addEventListener("input", write);
    write();
  }
  const adaptive = at("adaptive");
  const followAdaptive = () => (at("fidelity").disabled = adaptive.checked);
  adaptive.addEventListener("change", followAdaptive);
  followAdaptive();
  at("choose").addEventListener("change", () => {
    take([...at("choose").files]);
    at("choose").value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      event.preventDefault();
      at("drop").classList.add("over");
    });
  }
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) at("drop").classList.remove("over");
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  window.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  ask("/api/server").then(
    (found) => {
      server = found;
      at("server").textContent = `cascade ${found.model.slice(0, 12)}, faces of ${found.face_px} px`;
      at("note").textContent = found.note;
      at("note").hidden = !found.note;
      at("takes").textContent = `JPEG, PNG, WebP, TIFF and others, up to ${size(found.most_bytes)} and ${found.most_pixels / 1e6} million pixels. They go to the server of this page only, which forgets them after ${duration(found.keep_s)}.`;
    },
    (error) => {
      at("trouble").textContent = error.message;
      at("trouble").hidden = false;
    },
  );
}

begin();
