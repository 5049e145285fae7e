import type { ComponentChildren } from "preact";
import { useCallback, useRef, useState } from "preact/hooks";
import { useKey } from "./hooks.js";

export interface Column<T> {
  title: string;
  isNumber?: boolean;
  /** The value to sort by. Without it, the column cannot be sorted. Null comes last. */
  by?: (row: T) => string | number | null;
  cell: (row: T) => ComponentChildren;
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
  const sortable = columns.filter(({ by }) => by !== undefined);
  const sorted = sortRows(rows, columns.find(({ title }) => title === sort.title)?.by, sort.isDown);
  return (
    <div class="table">
      {sortable.length > 0 && (
        <label class="table-sort">
          <span class="quiet">Sort by</span>
          <select
            value={sort.title ?? ""}
            onChange={({ currentTarget }) => choose({ title: currentTarget.value, isDown: false })}
          >
            {sort.title === undefined && <option value="">–</option>}
            {sortable.map(({ title }) => (
              <option key={title}>{title}</option>
            ))}
          </select>
        </label>
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
              {columns.map(({ title, isNumber, cell }, index) => (
                <td
                  key={title}
                  {...CELL}
                  class={`${isNumber === true ? "number" : ""} ${index === 0 ? "first" : ""}`}
                  data-label={title}
                >
                  {cell(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
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

export function Search({ label, value, onValue }: { label: string; value: string; onValue(value: string): void }) {
  const field = useRef<HTMLInputElement>(null);
  useKey(
    "/",
    useCallback(() => field.current?.focus(), []),
  );
  return (
    <input
      ref={field}
      type="search"
      class="search"
      placeholder="Search  /"
      aria-label={label}
      aria-keyshortcuts="/"
      dir="auto"
      value={value}
      onInput={({ currentTarget }) => onValue(currentTarget.value)}
    />
  );
}
