import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { type Problem, problemFrom } from "../api/problem.js";

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

/** Calls the function when the user presses the key outside of fields and dialogs. */
export function useKey(key: string, act: () => void): void {
  // Listen before the page is shown, so that no key is missed.
  useLayoutEffect(() => {
    const listen = (event: KeyboardEvent) => {
      const isTyping =
        event.target instanceof Element && event.target.closest("input, textarea, select, dialog") !== null;
      if (event.key !== key || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    };
    addEventListener("keydown", listen);
    return () => removeEventListener("keydown", listen);
  }, [key, act]);
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · copilotfleet`;
  }, [title]);
}
