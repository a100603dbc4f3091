// @ts-check
// Parse JSON and record the line of every key and entry, so that an error can name its line.

const SPACE = /[ \t\r\n]*/y;
const TOKEN = new RegExp(
  [
    '"(?:[^"\\\\\\u0000-\\u001f]|\\\\(?:["\\\\/bfnrt]|u[0-9a-fA-F]{4}))*"',
    "-?(?:0|[1-9]\\d*)(?:\\.\\d+)?(?:[eE][+-]?\\d+)?",
    "true|false|null|[{}\\[\\]:,]",
  ].join("|"),
  "y",
);

/** @typedef {(string | number)[]} Path keys and indices down to a value */

/** An error in the text of the regions; its message names the line. */
export class RegionTextError extends Error {
  /**
   * @param {number} line
   * @param {string} sentence
   */
  constructor(line, sentence) {
    super(`the regions, line ${line}: ${sentence}`);
    this.line = line;
  }
}

const keyOf = (/** @type {Path} */ path) => JSON.stringify(path);

class Reader {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.start = 0;
    this.end = 0;
    this.line = 1;
    this.token = "";
    /** @type {RegionTextError | undefined} */
    this.duplicate = undefined;
    this.lines = new Map([[keyOf([]), 1]]);
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

  /**
   * @param {string} expected
   * @returns {never}
   */
  refuse(expected) {
    const column = this.start - this.text.lastIndexOf("\n", this.start - 1);
    const sentence = `a mistake at column ${column} (${expected} must be there); correct it there`;
    throw new RegionTextError(this.line, `the text must be valid JSON, got ${sentence}`);
  }

  /** @param {string} token */
  take(token) {
    if (this.token !== token) this.refuse(`"${token}"`);
    this.next();
  }

  /**
   * @param {Path} path
   * @returns {unknown}
   */
  value(path) {
    const { token } = this;
    if (token === "{") return this.object(path);
    if (token === "[") return this.list(path);
    if (!token || "]}:,".includes(token)) this.refuse("a value");
    this.next();
    return JSON.parse(token);
  }

  /** @param {Path} path */
  object(path) {
    /** @type {Record<string, unknown>} */
    const found = Object.create(null); // no key has a special meaning
    this.next();
    while (this.token !== "}") {
      if (!this.token.startsWith('"')) this.refuse("a name in double quotes");
      const key = JSON.parse(this.token);
      const at = [...path, key];
      if (this.lines.has(keyOf(at))) {
        this.duplicate ??= new RegionTextError(
          this.line,
          `"${key}" must be given once, got it twice; delete one`,
        );
      }
      this.lines.set(keyOf(at), this.line);
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

  /** @param {Path} path */
  list(path) {
    /** @type {unknown[]} */
    const found = [];
    this.next();
    while (this.token !== "]") {
      this.lines.set(keyOf([...path, found.length]), this.line);
      found.push(this.value([...path, found.length]));
      if (this.token === "]") break;
      this.take(",");
      if (this.token === "]") this.refuse("a value");
    }
    this.next();
    return found;
  }
}

/**
 * Return the value of a text, and a function that returns the line of a path in it.
 *
 * @param {string} text
 */
export function readJson(text) {
  const reader = new Reader(text);
  const value = reader.value([]);
  if (reader.token) reader.refuse("the end");
  if (reader.duplicate) throw reader.duplicate; // errors of syntax come first
  return { value, lineOf: (/** @type {Path} */ ...path) => reader.lines.get(keyOf(path)) ?? 1 };
}
