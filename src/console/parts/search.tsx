import { useCallback, useRef } from "preact/hooks";
import { useKey } from "./hooks.js";

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
