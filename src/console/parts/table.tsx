import { type ComponentChildren, toChildArray } from "preact";
import { useState } from "preact/hooks";
import { amount, type Polled, useFocusKey } from "./hooks.js";
import { Ago, Button, Choice, Empty, Loaded, PageFrame } from "./notice.js";

export interface Column<T> {
  title: string;
  isNumber?: boolean;
  /** The value to sort by. Without it, the column cannot be sorted. Null comes last. */
  by?: (row: T) => string | number | null;
  cell: (row: T) => ComponentChildren;
  /** A second line in the cell, in small letters. None if it is empty. */
  note?: (row: T) => ComponentChildren;
}

/** A column of numbers. `none` takes the place of null. */
export function number<T>(
  title: string,
  of: (row: T) => number | null,
  { show = amount, none = "–" }: { show?: (value: number) => string; none?: string } = {},
): Column<T> {
  const cell = (row: T) => {
    const value = of(row);
    return value === null ? <span class="quiet">{none}</span> : show(value);
  };
  return { title, isNumber: true, by: of, cell };
}

/** A column of times, the newest first. `none` takes the place of null. */
export function time<T>(title: string, of: (row: T) => string | null, none = "–"): Column<T> {
  const by = (row: T) => {
    const at = of(row);
    return at === null ? null : -Date.parse(at);
  };
  return { title, by, cell: (row) => <Ago at={of(row)} none={none} /> };
}

interface RowAction {
  title: string;
  isDisabled?: boolean;
  act(): void;
}

/** The column with the buttons of each row. `about` names the row for screen readers. */
export function actions<T>(about: (row: T) => string, of: (row: T) => readonly RowAction[]): Column<T> {
  const cell = (row: T) => (
    <span class="actions">
      {of(row).map(({ title, ...button }) => (
        <Button key={title} class="small" about={about(row)} {...button}>
          {title}
        </Button>
      ))}
    </span>
  );
  return { title: "Actions", cell };
}

interface TableProps<T> {
  label: string;
  columns: readonly Column<T>[];
  rows: readonly T[];
  idOf: (row: T) => string;
  /** The title of the column by which the table is sorted at first. Without it, the rows keep their order. */
  sortedBy?: string;
}

/**
 * On a phone, the style sheet turns each row into a card, and the browser then no longer presents a table to screen
 * readers. These roles make it a table again.
 */
const TABLE = { role: "table" } as const;
const GROUP = { role: "rowgroup" } as const;
const ROW = { role: "row" } as const;
const HEADER = { role: "columnheader" } as const;
const CELL = { role: "cell" } as const;

interface Sort {
  title: string | undefined;
  isDown: boolean;
}

/** The order that the user chose for each table. It stays when the user leaves the page and comes back. */
const kept = new Map<string, Sort>();

/** A table that the user can sort. On a phone, each row is a card. */
export function Table<T>({ label, columns, rows, idOf, sortedBy }: TableProps<T>) {
  const [sort, setSort] = useState<Sort>(kept.get(label) ?? { title: sortedBy, isDown: false });
  const choose = (next: Sort) => {
    kept.set(label, next);
    setSort(next);
  };
  const sortable = columns.flatMap(({ by, title }) => (by === undefined ? [] : [title]));
  const sorted = sortRows(rows, columns.find(({ title }) => title === sort.title)?.by, sort.isDown);
  return (
    <div class="table">
      {sortable.length > 0 && (
        <Choice
          label="Sort by"
          class="table-sort"
          value={sort.title ?? ""}
          values={sort.title === undefined ? [["", "–"], ...sortable] : sortable}
          choose={(title) => choose({ title, isDown: false })}
        />
      )}
      <table {...TABLE} aria-label={label}>
        <thead {...GROUP}>
          <tr {...ROW}>
            {columns.map(({ title, by, isNumber }) => (
              <th
                key={title}
                {...HEADER}
                scope="col"
                class={isNumber === true ? "number" : ""}
                aria-sort={sort.title !== title ? undefined : sort.isDown ? "descending" : "ascending"}
              >
                {by === undefined ? (
                  <span class={title === "Actions" ? "sr-only" : ""}>{title}</span>
                ) : (
                  <button
                    type="button"
                    onClick={() => choose({ title, isDown: sort.title === title && !sort.isDown })}
                    class="sorter"
                  >
                    {title}
                  </button>
                )}
              </th>
            ))}
          </tr>
        </thead>
        <tbody {...GROUP}>
          {sorted.map((row) => (
            <tr key={idOf(row)} {...ROW}>
              {columns.map(({ title, isNumber, cell, note }, index) => (
                <td
                  key={title}
                  {...CELL}
                  class={`${isNumber === true ? "number" : ""} ${index === 0 ? "first" : ""}`}
                  data-label={title}
                >
                  {cell(row)}
                  <Note of={note?.(row)} />
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Note({ of }: { of: ComponentChildren }) {
  return toChildArray(of).length === 0 ? null : <span class="cell-note">{of}</span>;
}

function sortRows<T>(rows: readonly T[], by: Column<T>["by"], isDown: boolean): readonly T[] {
  if (by === undefined) return rows;
  return rows.toSorted((a, b) => {
    const [x, y] = [by(a), by(b)];
    if (x === null || y === null) return x === y ? 0 : x === null ? 1 : -1;
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return isDown ? -order : order;
  });
}

interface ListPageProps<V, T> {
  title: string;
  /** The word for a row, such as `token`. */
  noun: string;
  polled: Polled<V>;
  rowsOf(value: V): readonly T[];
  /** The words of a row among which the user can search. */
  wordsOf(row: T): readonly (string | null | undefined)[];
  /** Shown if there are no rows. */
  none: string;
  hint?: string;
  buttons?: ComponentChildren;
  /** Dialogs, and what is shown above the list even if it is not loaded. */
  notices?: ComponentChildren;
  /** Shown above the rows. */
  above?(value: V): ComponentChildren;
  /** Draws the rows that match the search. */
  children(found: readonly T[]): ComponentChildren;
  /** Shown below the rows. */
  below?(value: V): ComponentChildren;
}

/** A page with a list that the user can search. */
export function ListPage<V, T>(props: ListPageProps<V, T>) {
  const { title, noun, polled, rowsOf, wordsOf, none, hint, buttons, notices, above, children, below } = props;
  const [search, setSearch] = useState("");
  const wanted = search.trim().toLowerCase();
  const matches = (row: T) => wordsOf(row).join(" ").toLowerCase().includes(wanted);
  const head = (
    <>
      <input
        ref={useFocusKey("/")}
        type="search"
        class="search"
        placeholder="Search  /"
        aria-label={`Search the ${noun}s`}
        aria-keyshortcuts="/"
        dir="auto"
        value={search}
        onInput={({ currentTarget }) => setSearch(currentTarget.value)}
      />
      {buttons}
    </>
  );
  return (
    <PageFrame title={title} head={head}>
      {notices}
      <Loaded of={polled}>
        {(value) => {
          const found = rowsOf(value).filter(matches);
          return (
            <>
              {above?.(value)}
              {found.length > 0 && children(found)}
              {found.length === 0 && wanted !== "" && <Empty title={`No ${noun} matches.`} />}
              {found.length === 0 && wanted === "" && <Empty title={none}>{hint}</Empty>}
              {below?.(value)}
            </>
          );
        }}
      </Loaded>
    </PageFrame>
  );
}
