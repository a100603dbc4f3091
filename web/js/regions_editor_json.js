// JSON with the line of every key and entry, so that a mistake in hand-written text can be named.

const SPACE = /[ \t\r\n]*/y;
const TOKEN = new RegExp(
  [
    '"(?:[^"\\\\\\u0000-\\u001f]|\\\\(?:["\\\\/bfnrt]|u[0-9a-fA-F]{4}))*"',
    "-?(?:0|[1-9]\\d*)(?:\\.\\d+)?(?:[eE][+-]?\\d+)?",
    "true|false|null|[{}\\[\\]:,]",
  ].join("|"),
  "y",
);

export class Mistake extends Error {
  constructor(line, sentence) {
    super(`the regions, line ${line}: ${sentence}`);
    this.line = line;
  }
}

const placed = (path) => JSON.stringify(path);

class Reader {
  constructor(text) {
    this.text = text;
    this.end = 0;
    this.lines = new Map([[placed([]), 1]]);
    this.next();
  }

  next() {
    SPACE.lastIndex = this.end;
    SPACE.exec(this.text);
    this.start = TOKEN.lastIndex = SPACE.lastIndex;
    this.token = TOKEN.exec(this.text)?.[0] ?? "";
    this.end = this.start + this.token.length;
    this.line = this.text.slice(0, this.start).split("\n").length;
    if (!this.token && this.start < this.text.length) this.refuse("a value or a sign of JSON");
  }

  refuse(expected) {
    const column = this.start - this.text.lastIndexOf("\n", this.start - 1);
    const sentence = `a mistake at column ${column} (${expected} must be there); correct it there`;
    throw new Mistake(this.line, `the text must be valid JSON, got ${sentence}`);
  }

  take(token) {
    if (this.token !== token) this.refuse(`"${token}"`);
    this.next();
  }

  value(path) {
    const { token } = this;
    if (token === "{") return this.object(path);
    if (token === "[") return this.list(path);
    if (!token || "]}:,".includes(token)) this.refuse("a value");
    this.next();
    return JSON.parse(token);
  }

  object(path) {
    const found = Object.create(null); // any key is only a key
    this.next();
    while (this.token !== "}") {
      if (!this.token.startsWith('"')) this.refuse("a name in double quotes");
      const key = JSON.parse(this.token);
      const at = [...path, key];
      if (this.lines.has(placed(at))) {
        this.twice ??= new Mistake(
          this.line,
          `"${key}" must be given once, got it twice; delete one`,
        );
      }
      this.lines.set(placed(at), this.line);
      this.next();
      this.take(":");
      found[key] = this.value(at);
      if (this.token === "}") break;
      this.take(",");
      if (this.token === "}") this.refuse("a name in double quotes");
    }
    this.next();
    return found;
  }

  list(path) {
    const found = [];
    this.next();
    while (this.token !== "]") {
      this.lines.set(placed([...path, found.length]), this.line);
      found.push(this.value([...path, found.length]));
      if (this.token === "]") break;
      this.take(",");
      if (this.token === "]") this.refuse("a value");
    }
    this.next();
    return found;
  }
}

// The value, and lineOf(...path) of everything in it.
export function readJson(text) {
  const reader = new Reader(text);
  const value = reader.value([]);
  if (reader.token) reader.refuse("the end");
  if (reader.twice) throw reader.twice; // after all that is no JSON at all
  return { value, lineOf: (...path) => reader.lines.get(placed(path)) ?? 1 };
}
