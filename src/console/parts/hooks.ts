import type { RefObject } from "preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ask, type Problem, problemFrom } from "../api/client.js";

/** The part of the address after `#`, such as `/sessions/demo`. */
export function useRoute(): string {
  const [route, setRoute] = useState(routeOf());
  // Listen before the page is shown, so that no change is missed.
  useLayoutEffect(() => {
    const follow = () => setRoute(routeOf());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}

function routeOf(): string {
  return location.hash.slice(1) || "/";
}

export function go(route: string): void {
  location.hash = route;
}

export interface Polled<T> {
  value: T | undefined;
  problem: Problem | undefined;
  reload: () => Promise<void>;
}

/**
 * Loads a value at once, again every `everyMs` milliseconds while the page is visible, and when `load` changes.
 *
 * @param load the same function at each render (`useCallback`), because a new function loads the value again
 */
export function usePolled<T>(load: (signal: AbortSignal) => Promise<T>, everyMs: number): Polled<T> {
  const [value, setValue] = useState<T>();
  const [problem, setProblem] = useState<Problem>();
  const end = useRef(new AbortController());
  const reload = useCallback(async () => {
    const { signal } = end.current;
    try {
      const found = await load(signal);
      if (signal.aborted) return;
      setValue(found);
      setProblem(undefined);
    } catch (error) {
      if (!signal.aborted) setProblem(problemFrom(error));
    }
  }, [load]);
  useEffect(() => {
    end.current = new AbortController();
    const { current } = end;
    void reload();
    const refresh = () => {
      if (!document.hidden) void reload();
    };
    const timer = setInterval(refresh, everyMs);
    document.addEventListener("visibilitychange", refresh);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", refresh);
      current.abort();
    };
  }, [reload, everyMs]);
  return { value, problem, reload };
}

/** Polls the answer of the API to a GET of this path. */
export function useAnswer<T>(path: string, everyMs: number): Polled<T> {
  const load = useCallback(async (signal: AbortSignal) => await ask<T>("GET", path, { signal }), [path]);
  return usePolled(load, everyMs);
}

/** Returns a reference to a field, which gets the focus when the user presses the key outside of fields and dialogs. */
export function useFocusKey(key: string): RefObject<HTMLInputElement> {
  const field = useRef<HTMLInputElement>(null);
  // Listen before the page is shown, so that no key is missed.
  useLayoutEffect(() => {
    const listen = (event: KeyboardEvent) => {
      const isTyping =
        event.target instanceof Element && event.target.closest("input, textarea, select, dialog") !== null;
      if (event.key !== key || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      field.current?.focus();
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, [key]);
  return field;
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · copilotfleet`;
  }, [title]);
}

const UNITS: readonly (readonly [Intl.RelativeTimeFormatUnit, number])[] = [
  ["day", 86_400],
  ["hour", 3_600],
  ["minute", 60],
];
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const SIZES = ["B", "kB", "MB", "GB", "TB"];

/** How long ago a time (ISO 8601) was, such as "5 minutes ago". */
export function ago(time: string | null, now = Date.now()): string {
  if (time === null) return "never";
  const seconds = (Date.parse(time) - now) / 1_000;
  const [unit, size] = UNITS.find(([, each]) => Math.abs(seconds) >= each) ?? ["second", 1];
  return unit === "second" ? "just now" : RELATIVE.format(Math.round(seconds / size), unit);
}

/** The time in full, for tooltips. */
export function exact(time: string): string {
  return new Date(time).toLocaleString();
}

export function bytes(count: number | null): string {
  if (count === null) return "–";
  const power = count < 1 ? 0 : Math.min(SIZES.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1_000 ** power;
  return `${value.toFixed(power === 0 || value >= 10 ? 0 : 1)} ${SIZES[power]}`;
}

export function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

/** A number with separators. */
export function amount(count: number): string {
  return count.toLocaleString("en", { maximumFractionDigits: 2 });
}

const LONGEST_NAME = 36;

/** A name, with `…` in the middle if it is long. An id that the fleet chose is never cut. */
export function short(name: string): string {
  const letters = [...name];
  if (letters.length <= LONGEST_NAME) return name;
  const kept = (LONGEST_NAME - 1) / 2;
  return `${letters.slice(0, Math.ceil(kept)).join("")}…${letters.slice(-Math.floor(kept)).join("")}`;
}

export const THEMES = ["auto", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];

const NAME = "copilotfleet.theme";

export function themeOf(): Theme {
  const kept = localStorage.getItem(NAME);
  return THEMES.find((theme) => theme === kept) ?? "auto";
}

/** Stores and applies a theme. `auto` follows the setting of the system. */
export function keepTheme(theme: Theme): void {
  if (theme === "auto") localStorage.removeItem(NAME);
  else localStorage.setItem(NAME, theme);
  applyTheme(theme);
}

export function applyTheme(theme: Theme): void {
  const { dataset } = document.documentElement;
  if (theme === "auto") delete dataset.theme;
  else dataset.theme = theme;
}
