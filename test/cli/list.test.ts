import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SERVERS, SESSIONS, TOKENS } from "../../src/cli/render/columns.js";
import { arrange, type List, renderList } from "../../src/cli/render/table.js";
import type { SessionRecord } from "../../src/model/session.js";
import { type SessionView, viewRecord } from "../../src/sessions/view.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

interface Row {
  id: string;
  bornAt: string;
  size: number | null;
  note: string | null;
}

const LIST: List<Row> = {
  kind: "thing",
  idOf: ({ id }) => id,
  columns: [
    { heading: "THING", field: "id", cut: "middle" },
    { heading: "AGE", field: "bornAt", as: "since", cell: () => "1h" },
    { heading: "SIZE ON DISK", field: "size" },
    { heading: "NOTE", field: "note", wide: true },
  ],
};

function row(id: string, over: Partial<Row> = {}): Row {
  return { id, bornAt: "2026-01-01T00:00:00.000Z", size: 0, note: null, ...over };
}

function csv(rows: readonly Row[]): string {
  return renderList(LIST, rows, { format: "csv", headless: true });
}

/** The CSV field of a note with this text. */
function noteAsCsv(note: string): string {
  return csv([row("a", { note })])
    .replace(/^a,2026-01-01T00:00:00\.000Z,0,/, "")
    .replace(/\r\n$/, "");
}

/** Reads CSV as RFC 4180 defines it. */
function readCsv(text: string): string[][] {
  const records: string[][] = [];
  let record: string[] = [];
  for (const [, quoted, plain = "", end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)/g)) {
    record.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === ",") continue;
    records.push(record);
    record = [];
  }
  return records;
}

describe("a list in CSV", () => {
  it("a list in CSV has all columns, the JSON field names as headings, and a line break after each record", () => {
    expect(renderList(LIST, [row("a", { size: null }), row("b", { note: "x" })], { format: "csv" })).toBe(
      "id,bornAt,size,note\r\na,2026-01-01T00:00:00.000Z,,\r\nb,2026-01-01T00:00:00.000Z,0,x\r\n",
    );
    expect(renderList(LIST, [], { format: "csv" })).toBe("id,bornAt,size,note\r\n");
  });

  it.each([
    ['say "hi", bob', '"say ""hi"", bob"'],
    ["two\r\nlines", "two\\u{d}\\u{a}lines"],
    ["red\x1b[31m", "red\\u{1b}[31m"],
    ["李雷 محمد", "李雷 محمد"],
    ["a-b+c=d@e", "a-b+c=d@e"],
  ])("a list in CSV quotes and escapes %j as RFC 4180 defines it", (note, field) => {
    expect(noteAsCsv(note)).toBe(field);
  });

  it.each([
    ["=1+1", "'=1+1"],
    ["+bob", "'+bob"],
    ["-2", "'-2"],
    ["@SUM(A1)", "'@SUM(A1)"],
    ["  =1+1", "'  =1+1"],
    ["＝1+1", "'＝1+1"],
    ["ok,=1+1", '"ok,\'=1+1"'],
    ["ok; =1+1", "ok;' =1+1"],
  ])("a list in CSV puts an apostrophe before the formula in %j", (note, field) => {
    expect(noteAsCsv(note)).toBe(field);
  });

  it("a list in CSV leaves a negative number as it is", () => {
    expect(csv([row("a", { size: -5 })])).toBe("a,2026-01-01T00:00:00.000Z,-5,\r\n");
  });

  it("a list in CSV reads back as one field for each value, and no field begins a formula", () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: fc.constantFrom(..."a =+-@,;|\"'\r\n\t＝李") }), { maxLength: 5 }),
        (notes) => {
          const records = readCsv(csv(notes.map((note, at) => row(`id-${at}`, { note }))));
          expect(records.map(([id]) => id)).toEqual(notes.map((_, at) => `id-${at}`));
          for (const record of records) {
            expect(record).toHaveLength(4);
            expect(record[3]).not.toMatch(/^\s*[=+\-@]/);
          }
        },
      ),
    );
  });
});

describe("a list in other formats", () => {
  const rows = [row("a"), row("b", { note: "line\nbreak" })];

  it("the format `table` leaves out columns that are wide or unwanted, and the format `wide` shows all columns", () => {
    expect(renderList(LIST, rows, { format: "table" }).split("\n")[0]).toBe("THING   AGE   SIZE ON DISK");
    expect(renderList(LIST, rows, { format: "table", without: ["size-on-disk"] }).split("\n")[0]).toBe("THING   AGE");
    expect(renderList(LIST, rows, { format: "wide", without: ["size-on-disk"] }).split("\n")).toEqual([
      "THING   AGE   SIZE ON DISK   NOTE",
      "a       1h    0              -",
      "b       1h    0              line\\u{a}break",
    ]);
    expect(renderList(LIST, [row("x")], { format: "table", headless: true })).toBe("x       1h    0");
  });

  it("the format `name` prints each id with its kind, and the format `id` prints only the ids", () => {
    expect(renderList(LIST, rows, { format: "name" })).toBe("thing/a\nthing/b");
    expect(renderList(LIST, rows, { format: "id" })).toBe("a\nb");
  });

  it.each([
    ["servers", SERVERS],
    ["sessions", SESSIONS],
    ["tokens", TOKENS],
  ] as const)("no two columns and no two fields of the list of %s have the same name", (_, { columns }) => {
    for (const names of [columns.map(({ heading }) => heading), columns.map(({ field }) => field)])
      expect(new Set(names).size).toBe(columns.length);
  });
});

describe("the list of sessions", () => {
  const HOUR_MS = 3_600_000;
  const surroundings = { lease: null, stranded: false, ttlMs: null };
  const session = (over: Partial<SessionRecord>) =>
    viewRecord(sessionRecord("s", { lastUsedAt: new Date().toISOString(), ...over }), surroundings);
  const headings = (...rows: SessionView[]) => renderList(SESSIONS, rows, { format: "table" }).split("\n")[0];

  it("the list of sessions shows when they expire only if one of them expires within a day", () => {
    const late = session({ ttlMs: 25 * HOUR_MS });
    expect(headings(session({}), late)).not.toContain("EXPIRES");
    expect(headings(late, session({ ttlMs: 2 * HOUR_MS }))).toContain("EXPIRES");
    const wide = renderList(SESSIONS, [late], { format: "wide" });
    expect(wide).toMatch(/EXPIRES.*\n.* in 1d /);
    expect([late.expiresAt, session({}).expiresAt]).toEqual([expect.any(String), null]);
  });
});

describe("a sorted list", () => {
  const rows = [
    row("b", { size: 10, bornAt: "2026-01-02T00:00:00.000Z" }),
    row("c", { size: null, bornAt: "2026-01-03T00:00:00.000Z" }),
    row("a", { size: 9, bornAt: "2026-01-01T00:00:00.000Z" }),
  ];
  const ids = (column: string | undefined, descending = false, limit?: number) =>
    arrange(LIST, rows, { sort: column === undefined ? undefined : { column, descending }, limit }).map(({ id }) => id);

  it("a sorted list has texts in alphabetical order, numbers by size, and rows without a value last", () => {
    expect(ids("thing")).toEqual(["a", "b", "c"]);
    expect(ids("thing", true)).toEqual(["c", "b", "a"]);
    expect(ids("size-on-disk")).toEqual(["a", "b", "c"]);
    expect(ids("size-on-disk", true)).toEqual(["b", "a", "c"]);
  });

  it("a list that is sorted by an age begins with the youngest row", () => {
    expect(ids("age")).toEqual(["c", "b", "a"]);
    expect(ids("age", true)).toEqual(["a", "b", "c"]);
  });

  it("a limit keeps the first rows after sorting, or the first rows as given if there is no sort key", () => {
    expect(ids(undefined)).toEqual(["b", "c", "a"]);
    expect(ids(undefined, false, 2)).toEqual(["b", "c"]);
    expect(ids("thing", false, 1)).toEqual(["a"]);
  });
});
