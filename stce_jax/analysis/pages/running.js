"use strict";
(() => {
  const { every, written } = JSON.parse(document.getElementById("data").textContent);
  if (!every) return;
  const box = document.getElementById("refresh"), late = document.getElementById("late");
  setInterval(() => {
    if (box.checked) location.reload();
  }, 1000 * every);
  const check = () => {
    if (Date.now() / 1000 - written > 3 * every + 10)
      late.textContent = "It was to be written again by now: is stce watch still running?";
  };
  check();
  setInterval(check, 1000);
})();
